"""Whoever makes the shards, the archive is the same: processes, Dask's workers, those that took over from the dead."""

import contextlib
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import dask
import numpy as np
import pytest

from tests.servers import serve
from tests.sources.written_sources import make_dataset, write_zarr
from weathermixer.archive.archive import open_archive
from weathermixer.archive.verify import verify_archive
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.prepare.sizes import REMOTE_READS
from weathermixer.prepare.workers import Workers, open_workers
from weathermixer.sources.sources import open_source

OPTIONS = dict(domain=2, times_per_shard=3)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A source, and the archive that one process makes of it."""
    folder = tmp_path_factory.mktemp("alone")
    source = open_source(write_zarr(make_dataset(), folder / "source.zarr"))
    return source, prepare_archive(source, folder / "alone", **OPTIONS)


def check_same(alone, path, workers):
    source, archive = alone
    assert workers.count == 2
    together = prepare_archive(source, path, workers=workers, **OPTIONS)
    assert together.attributes["checksum"] == archive.attributes["checksum"]
    assert together.attributes["manifest"] == archive.attributes["manifest"]
    assert verify_archive(path) == []


def test_processes_make_the_archive_of_one_and_stop_at_once_at_a_fault(tmp_path, alone):
    with pytest.raises(ValueError, match="math domain error|nonnegative"), open_workers(2) as workers:
        check_same(alone, tmp_path / "together", workers)
        began = time.monotonic()
        sleeping = workers.executor.submit(time.sleep, 300)
        list(workers.map(math.sqrt, [-1.0]))
    assert time.monotonic() - began < 100
    assert sleeping.exception()


def test_dasks_workers_make_the_archive_of_one(tmp_path, alone):
    pytest.importorskip("distributed", reason="no distributed: pip install 'weathermixer[dask]'")
    with open_workers(dask="local:2") as workers:
        check_same(alone, tmp_path / "together", workers)


def test_faults_do_not_depend_on_who_makes_what(tmp_path):
    """Fields are compared with those before across the borders of tasks, where no pair of the statistics does it."""
    dataset = make_dataset()[["2m_temperature"]]
    dataset += 12 * np.sin(np.deg2rad(dataset.latitude)).astype(np.float32)
    dataset["2m_temperature"].values[13:] = dataset["2m_temperature"].values[13:, ::-1]
    options = dict(times_per_shard=1, keep_faults=True, statistics_period=("2019-12-30", "2019-12-31"))
    archives = [
        prepare_archive(
            open_source(dataset), tmp_path / str(count), workers=Workers(None, lambda count=count: count), **options
        )
        for count in (1, 20)
    ]
    for archive in archives:
        (fault,) = archive.attributes["faults"]
        assert fault.startswith("2m_temperature at 2020-01-02T06:00: it is upside down")
    assert archives[0].attributes["checksum"] == archives[1].attributes["checksum"]


def test_a_process_that_is_killed_is_said():
    message = "one of 2 processes was killed.*the same command goes on"
    with pytest.raises(ValueError, match=message), open_workers(2) as workers:
        list(workers.map(signal.raise_signal, [signal.SIGKILL]))


@pytest.mark.parametrize(
    "address, message",
    [
        ("tcp://127.0.0.1:9", "no Dask scheduler answers at tcp://127.0.0.1:9"),
        ("nowhere", "no Dask scheduler answers"),
        ("local:0", "local:0: give a number of processes, of at least 1"),  # would be waited for
    ],
)
def test_a_cluster_that_is_not_there(address, message, tmp_path):
    distributed = pytest.importorskip("distributed", reason="no distributed: pip install 'weathermixer[dask]'")
    impatient = dask.config.set({"distributed.comm.timeouts.connect": "1s"})
    with impatient, pytest.raises(ValueError, match=message), open_workers(dask=address):
        pass
    with pytest.raises(ValueError, match="No global client found"):  # xarray would ask it for the lock of each file
        distributed.get_client()
    make_dataset()[["2m_temperature"]].to_netcdf(tmp_path / "next.nc")


@pytest.mark.slow
def test_processes_end_with_their_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time\n"
        "from weathermixer.prepare.workers import open_workers\n"
        "if __name__ == '__main__':\n"
        "    with open_workers(2) as workers:\n"
        "        list(workers.map(abs, range(4)))\n"
        "        print(*workers.executor._processes, flush=True)\n"
        "        time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        children = [int(word) for word in parent.stdout.readline().split()]
        assert len(children) == 2
        parent.kill()
    wait_until(lambda: not any(os.path.exists(f"/proc/{child}") for child in children))


def test_reads_of_several_shards_are_in_flight(tmp_path):
    """From a store that takes its time to answer, as those across a network do."""
    write_zarr(make_dataset()[["2m_temperature"]], tmp_path / "source.zarr", zarr_format=2, time_chunk=1)
    lock, under_way, most = threading.Lock(), set(), []

    def dawdle(path, times):
        if "/2m_temperature/" in path:
            with lock:
                under_way.add(path)
                most.append(len(under_way))
            time.sleep(0.05)
            with lock:
                under_way.discard(path)

    with serve(tmp_path, dawdle) as (url, _):
        archive = prepare_archive(open_source(f"{url}/source.zarr"), tmp_path / "a", times_per_shard=1)
    assert len(archive.times) == 20
    assert max(most) == REMOTE_READS


class Cluster:
    """A scheduler and workers of Dask, each a process of its own, that can be killed."""

    def __init__(self, folder: pathlib.Path, stack: contextlib.ExitStack):
        self.folder, self.stack = folder, stack
        file = folder / "scheduler.json"
        file.unlink(missing_ok=True)
        self.scheduler = self.start("scheduler", "--port=0", f"--scheduler-file={file}", "--host=127.0.0.1")
        wait_until(lambda: file.exists() and '"address"' in file.read_text())
        self.address = re.search(r'"address": "(.+?)"', file.read_text()).group(1)

    def start(self, *words: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "dask", *words, "--dashboard-address=127.0.0.1:0"]
        log = self.stack.enter_context((self.folder / "cluster.log").open("a"))
        process = subprocess.Popen(command, stdout=log, stderr=log)
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process

    def start_worker(self) -> subprocess.Popen:
        return self.start("worker", self.address, "--nthreads=1", "--no-nanny", "--death-timeout=5")


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_workers_and_schedulers_lose_nothing(tmp_path):
    pytest.importorskip("distributed", reason="no distributed: pip install 'weathermixer[dask]'")
    write_zarr(make_dataset(), tmp_path / "source.zarr", zarr_format=2, time_chunk=1)
    whole = prepare_archive(open_source(tmp_path / "source.zarr"), tmp_path / "whole", times_per_shard=1)
    journal = tmp_path / "a.partial" / ".prepare"

    def finished() -> set[str]:
        return {path.name for path in journal.glob("shard-*") if not path.name.endswith("__lock")}

    def dawdle(path, times):
        return 0.2 if path.endswith(".0.0") else None

    with serve(tmp_path, dawdle) as (url, asked), contextlib.ExitStack() as stack:
        command = [sys.executable, "-m", "experiments.prepare", f"{url}/source.zarr", str(tmp_path / "a")]
        command += ["--times-per-shard=1", "--dask"]
        cluster = Cluster(tmp_path, stack)
        first, _ = cluster.start_worker(), cluster.start_worker()
        with subprocess.Popen([*command, cluster.address], stderr=subprocess.PIPE, text=True) as prepare:
            wait_until(lambda: len(finished()) >= 2)
            first.kill()
            before = len(finished())
            wait_until(lambda: len(finished()) >= before + 4)
            assert prepare.poll() is None
            cluster.scheduler.kill()
            assert prepare.wait(60) == 1
            error = prepare.stderr.read().splitlines()[-1]
        assert re.search("the Dask scheduler at tcp://.* is gone.*the same command goes on", error)
        kept = finished()
        assert 6 <= len(kept) < 20
        again = Cluster(tmp_path, stack)
        again.start_worker()
        asked.clear()
        subprocess.run([*command, again.address], check=True, timeout=120)
        read = {path for path in asked if "/2m_temperature/" in path and path.endswith(".0.0")}
        assert len(read) < 20, "what was finished is not read again"
    archive = open_archive(tmp_path / "a")
    assert archive.attributes["checksum"] == whole.attributes["checksum"]
    assert archive.attributes["manifest"] == whole.attributes["manifest"]
    assert verify_archive(tmp_path / "a") == []
