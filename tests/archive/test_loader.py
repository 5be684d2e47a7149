"""Batches: equal to slices of the archive on every mesh and over processes, in the order of the sampling."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from weathermixer.archive.loader import Batches, read_frames
from weathermixer.archive.sampling import sample_starts, valid_starts
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel.mesh import make_mesh, spec

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
    with Batches(
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
    batches = Batches(
        archive, full_set(archive), make_mesh(1, 1, 1), starts=np.arange(10), seed=0, batch_size=1, lead_hours=6,
        first_step=0, last_step=10**9,
    )  # fmt: skip
    next(batches)
    batches.close()
    assert not any(thread.name.startswith(batches._name + "_") for thread in threading.enumerate())
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
        Batches(
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


def damage(archive, *, time, band):
    """Flips a bit of a chunk of an archive made with domain=2, four times per shard and all channels in a chunk."""
    shard = pathlib.Path(archive.path, "fields", "c", str(time // 4), "0", "0", "0")
    data = bytearray(shard.read_bytes())
    index = np.frombuffer(data[-4 - 16 * 8 : -4], np.uint64).reshape(4, 2, 2)
    offset, length = index[time % 4, band].tolist()
    data[offset + length // 2] ^= 1
    shard.write_bytes(data)


def test_skipping_replaces_samples_and_counts_them(make_archive, caplog):
    archive = make_archive(domain=2)
    whole = archive.store.read().result()
    damage(archive, time=4, band=1)
    options = dict(starts=np.arange(12), seed=0, batch_size=2, lead_hours=6, first_step=0, last_step=6)
    with Batches(archive, full_set(archive), make_mesh(2, 2, 1), on_error="skip", **options) as batches:
        pairs = [(np.asarray(batch.inputs)[:, :4], np.asarray(batch.targets)[:, :4]) for batch in batches]
        skipped = batches.account().skipped
    index = {frame.tobytes(): time for time, frame in enumerate(whole)}
    seen = [index[frame.tobytes()] for inputs, _ in pairs for frame in inputs]
    assert [index[frame.tobytes()] for _, targets in pairs for frame in targets] == [start + 1 for start in seen]
    planned = [int(i) for step in range(6) for i in sample_starts(np.arange(12), seed=0, step=step, batch_size=2)]
    changed = [position for position, (a, b) in enumerate(zip(seen, planned, strict=True)) if a != b]
    assert [planned[position] for position in changed] in ([3, 4], [4, 3])
    assert not {3, 4} & set(seen)
    assert len(skipped) >= 2 and len(caplog.records) == len(skipped)
    for position, problem in zip(changed, skipped, strict=False):
        assert problem.startswith(
            f"step {position // 2}, row {position % 2}: {archive.path}: cannot read time 2000-01-02"
        )
        assert "latitudes -11.25 to -78.75" in problem


def test_skipping_ends_where_nothing_can_be_read(make_archive):
    archive = make_archive(domain=2)
    shutil.rmtree(pathlib.Path(archive.path, "fields", "c"))
    options = dict(starts=np.arange(12), seed=0, batch_size=1, lead_hours=6, first_step=0, last_step=6)
    with (
        Batches(archive, full_set(archive), make_mesh(1, 1, 1), on_error="skip", **options) as batches,
        pytest.raises(ValueError, match="step 0: 16 samples in a row cannot be read: .*is missing"),
    ):
        next(batches)


WORKER = """
import sys, jax, numpy as np
path, damaged, port, process = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
from weathermixer.archive.archive import open_archive
from weathermixer.archive.loader import Batches
from weathermixer.parallel.mesh import make_mesh
from weathermixer.fields.variables import ChannelSet
total = jax.jit(lambda b: (b.inputs.astype("float32") ** 2).sum())
def run(path, mesh_shape, **options):
    archive = open_archive(path)
    channels = ChannelSet(archive.channels, tuple(archive.static), 2)
    with Batches(archive, channels, make_mesh(*mesh_shape), starts=np.arange(8), seed=0, batch_size=4,
                      lead_hours=6, first_step=0, last_step=2, **options) as batches:
        totals = [float(total(batch)) for batch in batches]
        account = batches.account()
    print("RESULT", *totals, account.bytes_needed, len(account.skipped), account.bytes_read > 0, flush=True)
for mesh_shape in [(1, 4, 1), (2, 2, 1), (1, 2, 2), (4, 1, 1)]:
    run(path, mesh_shape)
run(damaged, (1, 4, 1), on_error="skip")
# both take one batch and leave, whoever is first: neither waits for what the other would have read next
archive = open_archive(path)
with Batches(archive, ChannelSet(archive.channels), make_mesh(1, 4, 1), starts=np.arange(8), seed=0, batch_size=4,
                  lead_hours=6, first_step=0, last_step=1000, on_error="skip") as batches:
    next(batches)
"""


def test_two_processes(make_archive):
    archive, damaged = make_archive(domain=4), make_archive(seed=1, domain=2)
    squares = np.square(archive.store.read().result().astype(np.float32)).sum(axis=(1, 2, 3))
    chosen = [sample_starts(np.arange(8), seed=0, step=step, batch_size=4) for step in range(2)]
    damage(damaged, time=3, band=1)  # the south, which process 1 alone reads
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    root = pathlib.Path(__file__).parents[2]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, archive.path, damaged.path, str(port), str(process)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONPATH": str(root)},
        )
        for process in range(2)
    ]  # fmt: skip
    try:
        outputs = [worker.communicate(timeout=200)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    results = [[line.split()[1:] for line in output.splitlines() if line.startswith("RESULT")] for output in outputs]
    frame = archive.store[0].size * 2
    frames = sum(len({*starts.tolist(), *(starts + 1).tolist()}) for starts in chosen)
    for process in results:
        for result in process[:4]:
            np.testing.assert_allclose([float(x) for x in result[:2]], [squares[s].sum() for s in chosen], rtol=1e-5)
            assert result[3:] == ["0", "True"]
        # a process reads half of every frame where the instance is spread over both, and no frame twice
        assert int(process[0][2]) == int(process[2][2]) == frames * frame // 2
    # with an instance per process the two read what the rows need
    assert sum(int(process[3][2]) for process in results) >= frames * frame
    # the north was read well by process 0, but both replaced the same samples
    assert results[0][4][:2] == results[1][4][:2] and results[0][4][3] == results[1][4][3] != "0"


MEMORY = """
import sys, jax, numpy as np
jax.config.update("jax_platforms", "cpu")
from weathermixer.archive.archive import open_archive
from weathermixer.archive.loader import Batches
from weathermixer.parallel.mesh import make_mesh
from weathermixer.fields.variables import ChannelSet
# not getrusage's: that begins with the size of the process that started this one
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
archive = open_archive(sys.argv[1])
jax.device_put(np.zeros(1)).block_until_ready()
before = peak()
with Batches(archive, ChannelSet(archive.channels), make_mesh(1, 1, 1), starts=np.arange(7), seed=0,
                  batch_size=2, lead_hours=6, first_step=0, last_step=80, block=int(sys.argv[2])) as batches:
    for step, batch in enumerate(batches):
        jax.block_until_ready(batch)
        if step == 20:
            early = peak()
    print(batches.host_bytes, early - before, peak() - early)
"""


@pytest.mark.parametrize("block", [3])
def test_host_memory_stays_within_its_bound(make_archive, block):
    archive = make_archive(times=8, shape=(256, 1024), domain=8)
    root = str(pathlib.Path(__file__).parents[2])
    found = subprocess.run(
        [sys.executable, "-c", MEMORY, archive.path, str(block)], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": root}, timeout=100,
    )  # fmt: skip
    bound, taken, growth = (int(word) for word in found.stdout.split())
    assert bound == (6 + (block > 1)) * 2 * 2 * 4 * 256 * 1024 * 2
    batch = 2 * 2 * 4 * 256 * 1024 * 2
    # the consumer holds a batch too; threads' stacks, code of the first reads and what the allocator keeps of chunks
    # that were freed count in the process's memory
    assert taken + growth < bound + batch + 32e6
    # how many are in flight at once varies, and the arenas that they are taken from; of 60 batches each leaving an
    # eighth behind there would be seven more
    assert growth < 4 * batch
