"""Batches: equal to slices of the archive on every mesh and over processes, in the order of the sampling."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from weathermixer.data.loader import make_batches, read_frames
from weathermixer.data.sampling import sample_starts, valid_starts
from weathermixer.mesh import make_mesh, spec
from weathermixer.variables import ChannelSet

MESHES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (2, 4, 1), (1, 2, 4)]


def full_set(archive, multiple=8):
    return ChannelSet(archive.channels, tuple(archive.static), multiple)


def expected_frames(archive, channels, indices):
    stored = archive.store.read().result()[np.asarray(indices)][:, archive.channel_indices(channels.names)]
    return np.pad(stored, [(0, 0), (0, channels.size - stored.shape[1]), (0, 0), (0, 0)])


@pytest.mark.parametrize("mesh_shape", MESHES)
def test_boxes_equal_slices(make_archive, mesh_shape):
    archive = make_archive(domain=4, tensor=2)
    channels = full_set(archive)
    indices = np.array([3, 0, 7, 7, 1, 14, 2, 9])
    frames = read_frames(archive, channels, make_mesh(*mesh_shape), indices)
    assert frames.dtype == np.float16 and frames.sharding.spec == spec("batch", "channel", "lat", "lon")
    np.testing.assert_array_equal(np.asarray(frames), expected_frames(archive, channels, indices))


def test_channels_in_any_order(make_archive):
    archive = make_archive()
    channels = ChannelSet.from_names(["u_component_of_wind_850", "2m_temperature", "temperature_850"], multiple=2)
    frames = read_frames(archive, channels, make_mesh(1, 2, 2), np.array([5]))
    np.testing.assert_array_equal(np.asarray(frames), expected_frames(archive, channels, [5]))


@pytest.mark.parametrize("prefetch", [1, 3])
def test_batches_follow_the_sampling(make_archive, prefetch):
    archive = make_archive(missing=(6,))
    channels = full_set(archive)
    starts = valid_starts(archive.times, ("2000", "2000"), 12, step_hours=6)
    with make_batches(
        archive, channels, make_mesh(2, 2, 2), starts=starts, seed=5, batch_size=2, lead_hours=12, first_step=3,
        last_step=11, prefetch=prefetch,
    ) as batches:  # fmt: skip
        batches = list(batches)
    assert len(batches) == 8
    for step, batch in enumerate(batches, start=3):
        chosen = sample_starts(starts, seed=5, step=step, batch_size=2)
        np.testing.assert_array_equal(np.asarray(batch.inputs), expected_frames(archive, channels, chosen))
        np.testing.assert_array_equal(np.asarray(batch.targets), expected_frames(archive, channels, chosen + 2))


def test_closing_early_stops_the_reading(make_archive):
    archive = make_archive()
    batches = make_batches(
        archive, full_set(archive), make_mesh(1, 1, 1), starts=np.arange(10), seed=0, batch_size=1, lead_hours=6,
        first_step=0, last_step=10**9,
    )  # fmt: skip
    next(batches)
    batches.close()
    assert not batches._thread.is_alive()
    with pytest.raises(StopIteration):
        next(batches)


def test_a_damaged_chunk_stops_with_time_and_band_named(make_archive):
    archive = make_archive(domain=2)
    shard = pathlib.Path(archive.path, "fields", "c", "1", "0", "0", "0")  # times 4 to 7
    data = bytearray(shard.read_bytes())
    data[10] ^= 1  # in time 4, the northern band
    shard.write_bytes(data)
    with (
        pytest.raises(ValueError, match=r"cannot read time 2000-01-02T00:00, .*latitudes 78.75 to 11.25: .*entry"),
        make_batches(
            archive, full_set(archive), make_mesh(1, 2, 1), starts=np.array([4]), seed=0, batch_size=1, lead_hours=6,
            first_step=0, last_step=3,
        ) as batches,
    ):  # fmt: skip
        next(batches)
    shard.unlink()
    with pytest.raises(ValueError, match="cannot read time 2000-01-02T06:00, .*is missing"):
        read_frames(archive, full_set(archive), make_mesh(1, 2, 1), np.array([5]))


def test_mesh_that_does_not_divide_is_named(make_archive):
    archive = make_archive()
    with pytest.raises(
        ValueError, match=r"batch=1 is not divisible by data=2; channels=6 is not divisible by tensor=4"
    ):
        read_frames(archive, full_set(archive, 1), make_mesh(2, 1, 4), np.array([0]))


WORKER = """
import sys, jax, numpy as np
path, port, process = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
from weathermixer.data.archive import open_archive
from weathermixer.data.loader import make_batches
from weathermixer.mesh import make_mesh
from weathermixer.variables import ChannelSet
archive = open_archive(path)
channels = ChannelSet(archive.channels, tuple(archive.static), 2)
for shape in [(1, 4, 1), (2, 2, 1), (1, 2, 2), (4, 1, 1)]:
    mesh = make_mesh(*shape)
    with make_batches(archive, channels, mesh, starts=np.arange(8), seed=0, batch_size=4, lead_hours=6, first_step=0,
                      last_step=2) as batches:
        for batch in batches:
            total = jax.jit(lambda b: (b.inputs.astype("float32") ** 2).sum())(batch)
            print(shape, float(total), flush=True)
"""


def test_two_processes(make_archive, tmp_path):
    archive = make_archive()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    root = pathlib.Path(__file__).parents[2]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, archive.path, str(port), str(process)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONPATH": str(root)},
        )
        for process in range(2)
    ]  # fmt: skip
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    expected = [
        np.square(archive.store.read().result().astype(np.float32)[sample_starts(np.arange(8), seed=0, step=step,
        batch_size=4)]).sum() for step in range(2)
    ]  # fmt: skip
    for output in outputs:
        lines = [line for line in output.splitlines() if line.startswith("(")]
        totals = [float(line.split()[-1]) for line in lines]
        np.testing.assert_allclose(totals, expected * 4, rtol=1e-5)
    assert jax.process_count() == 1
