"""A prepare that is killed, at any point and however often, ends with what an undisturbed one makes."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.sources.written_sources import TIMES, make_dataset, write_zarr
from weathermixer.archive.archive import open_archive
from weathermixer.archive.verify import verify_archive
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.sources.sources import open_source

# A process that imports everything once, and forks a prepare whenever it is told to: starting Python takes longer than
# the prepare that is to be killed. It touches no thread before it forks.
DRIVER = """
import os, sys
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.sources.sources import open_source
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        prepare_archive(open_source(sys.argv[1]), sys.argv[2], times_per_shard=1)
        os._exit(0)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(status, flush=True)
"""


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random(tmp_path, kills):
    path = write_zarr(make_dataset(times=TIMES[:12], lat=16, lon=32), tmp_path / "source.zarr")
    command = [sys.executable, "-c", DRIVER, str(path), str(tmp_path / "a")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as driver:
        start = time.process_time()  # of this process alone: the driver imports meanwhile
        whole = prepare_archive(open_source(path), tmp_path / "whole", times_per_shard=1)
        undisturbed = time.process_time() - start
        chance = random.Random(kills)
        killed = finished = 0
        while killed < kills:
            driver.stdin.write(b"go\n")
            driver.stdin.flush()
            child = int(driver.stdout.readline())
            time.sleep(chance.uniform(0, undisturbed / 2))
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(child, signal.SIGKILL)
            status = int(driver.stdout.readline())
            assert status in (0, signal.SIGKILL), driver.stderr.read()
            if status == 0:
                # it was quicker than the kill: what it made is checked, and killing starts again from nothing
                finished += 1
                assert open_archive(tmp_path / "a").attributes["checksum"] == whole.attributes["checksum"]
                os.rename(tmp_path / "a", tmp_path / f"finished-{finished}")
            killed += status != 0
        driver.stdin.close()
    if os.path.exists(tmp_path / "a"):  # killed after it was published
        archive = open_archive(tmp_path / "a")
    else:
        archive = prepare_archive(open_source(path), tmp_path / "a", times_per_shard=1)
    assert archive.attributes["checksum"] == whole.attributes["checksum"]
    assert archive.attributes["manifest"] == whole.attributes["manifest"]
    assert verify_archive(tmp_path / "a") == []
