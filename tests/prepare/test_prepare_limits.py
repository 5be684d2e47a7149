"""Prepare keeps to the memory it states, and says clearly when a disk is full."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import zarr

from tests.sources.written_sources import make_dataset, write_zarr
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.sources.sources import open_source

MEASURE = """
import json, sys
from weathermixer.prepare.sizes import plan_archive
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.sources.sources import open_source
from weathermixer.prepare.workers import open_workers
def peak(process):  # of getrusage the peak is that of the process that started this one, where that was larger
    return int(open(f"/proc/{process}/status").read().split("VmHWM:")[1].split()[0]) * 1024
if __name__ == "__main__":
    source = open_source(sys.argv[1])
    options = dict(times_per_shard=int(sys.argv[3]), domain=4)
    plan = plan_archive(source, dtype="float16", tensor=1, workers=int(sys.argv[4]), **options)
    with open_workers(plan.workers) as workers:
        prepare_archive(source, sys.argv[2], workers=workers, **options)
        peaks = [peak(process) for process in (workers.executor._processes if workers.executor else ["self"])]
    print(json.dumps([max(peaks), plan.worker_bytes, plan.frame_bytes * len(source.times)]))
"""


@pytest.fixture(scope="module")
def large_source(tmp_path_factory) -> str:
    """Fields of noise, which do not compress, a frame of all levels in a chunk: 1.2 GB."""
    path = str(tmp_path_factory.mktemp("large") / "source.zarr")
    times, lat, lon, levels = 240, 180, 360, 10
    group = zarr.open_group(path, mode="w", zarr_format=3)
    coordinates = {
        "time": np.arange(times) * 6,
        "level": np.arange(1, levels + 1) * 100,
        "latitude": 90 - np.arange(lat) - 0.5,
        "longitude": np.arange(lon),
    }
    for name, values in coordinates.items():
        array = group.create_array(name, shape=values.shape, dtype=values.dtype, dimension_names=[name])
        array[:] = values
    group["time"].attrs.update(units="hours since 2000-01-01", calendar="proleptic_gregorian")
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(levels, lat, lon)).astype(np.float32)
    for name in ("u_component_of_wind", "v_component_of_wind"):
        array = group.create_array(
            name,
            shape=(times, levels, lat, lon),
            chunks=(1, levels, lat, lon),
            dtype="float32",
            dimension_names=["time", "level", "latitude", "longitude"],
        )
        for time in range(times):
            array[time] = np.roll(noise, time, axis=-1) * (1 + time / times)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("times_per_shard, workers", [(2, 1), (12, 1), (2, 2)])
def test_memory_is_bounded(tmp_path, large_source, times_per_shard, workers):
    script = tmp_path / "measure.py"
    script.write_text(MEASURE)
    command = [sys.executable, str(script), large_source, str(tmp_path / "a"), str(times_per_shard), str(workers)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, bound, data = json.loads(result.stdout)
    assert data > 1.2 * workers * bound, "the record has to be larger than the bound for the test to tell anything"
    assert peak <= bound, f"a worker took {peak / 1e6:.0f} MB, the bound is {bound / 1e6:.0f} MB"


FULL = """
import resource, signal, sys
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.sources.sources import open_source
source = open_source(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    prepare_archive(source, sys.argv[2], times_per_shard=4)
except ValueError as error:
    print(error)
"""


def test_a_file_that_cannot_grow(tmp_path):
    """A limit on the size of files stands for a disk that is full: metadata and journal fit, shards do not."""
    source = write_zarr(make_dataset(lat=32, lon=64), tmp_path / "source.zarr")
    command = [sys.executable, "-c", FULL, str(source), str(tmp_path / "a"), str(100_000)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "a.partial cannot be written: " in result.stdout
    assert "the same command goes on" in result.stdout
    assert not os.path.exists(tmp_path / "a")
    archive = prepare_archive(open_source(source), tmp_path / "a", times_per_shard=4)
    whole = prepare_archive(open_source(source), tmp_path / "b", times_per_shard=4)
    assert archive.attributes["checksum"] == whole.attributes["checksum"]
