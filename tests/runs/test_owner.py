"""One run, one owner: a second one is refused while the first lives, whatever became of it, and may take over."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from weathermixer.runs import owner
from weathermixer.runs.owner import OWNER_FILE, own_workdir

HOLD = """
import pathlib, sys, time
from weathermixer.runs import owner
owner.RENEW_SECONDS = 0.2
with owner.own_workdir(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds tmp_path."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_with_host_process_and_since_when(tmp_path, holder):
    in_use = rf"is in use by process {holder.pid} on \S+ since 20\d\d-.*--take-over"
    with pytest.raises(ValueError, match=in_use), own_workdir(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with own_workdir(tmp_path):  # the dead hold nothing
        assert json.loads((tmp_path / OWNER_FILE).read_text())["process"] == os.getpid()
    assert not (tmp_path / OWNER_FILE).exists()


def test_one_that_is_taken_over_ends_without_a_word_in_the_workdir(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(owner, "RENEW_SECONDS", 1.0)
    with own_workdir(tmp_path, take_over=True):
        assert holder.poll() == 1  # before anything is written
        assert b"was taken over by another run" in holder.stderr.read()
        assert json.loads((tmp_path / OWNER_FILE).read_text())["process"] == os.getpid()


def elsewhere(tmp_path):
    """Makes the holder of tmp_path one of another machine."""
    path = tmp_path / OWNER_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "another", "host": "node7"}))


def test_one_on_another_machine_is_watched(tmp_path, holder, monkeypatch, capsys):
    monkeypatch.setattr(owner, "RENEW_SECONDS", 0.1)
    elsewhere(tmp_path)
    with pytest.raises(ValueError, match="is in use by process .* on node7"), own_workdir(tmp_path):
        pass
    assert "is alive shows in" in capsys.readouterr().err
    holder.kill()
    holder.wait()
    monkeypatch.setattr(owner, "DEAD_SECONDS", 1.0)
    since = time.monotonic()
    with own_workdir(tmp_path):
        assert time.monotonic() - since < 5


def test_a_damaged_lock_and_one_long_unrenewed_hold_nobody_up(tmp_path, monkeypatch):
    path = tmp_path / OWNER_FILE
    path.write_text('{"host": "node7", "proc')
    os.utime(path, (0, time.time() - 300))
    with own_workdir(tmp_path):
        assert json.loads(path.read_text())["token"]
