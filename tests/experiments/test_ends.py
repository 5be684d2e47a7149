"""How runs end: real processes that are asked to stop, fail, stand still or lose each other, and what they leave."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time

import pytest

from tests.running import make_data, read_until, train
from weathermixer.parallel import distributed
from weathermixer.training.telemetry import read_records


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


def ended(workdir):
    return json.loads((workdir / "ended.json").read_text())


def saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def finish(run, *, within=60):
    """(status, what was said) of a run that has to end in so many seconds: JAX's own waits are 300 s and more."""
    try:
        said = run.communicate(timeout=within)[0]
    except subprocess.TimeoutExpired:
        run.kill()
        raise
    return run.returncode, said


def block_all(data):
    """Reads of the archive never return any more: its files are pipes to which nobody writes."""
    for shard in range(4):
        path = data / f"archive/fields/c/{shard}/0/0/0"
        os.mkfifo(f"{path}.pipe")
        os.replace(f"{path}.pipe", path)  # at no time is there nothing


@pytest.mark.slow
def test_asked_twice_it_saves_once_and_the_same_command_finishes(data, tmp_path):
    """All its time is accounted for, that between a kill and the next start as well."""
    began, steps = time.time(), ["--config.training.steps=400"]
    with train(data, tmp_path / "run", *steps) as run:
        read_until(run, "step 12 ")
        run.send_signal(signal.SIGTERM)
        run.send_signal(signal.SIGTERM)
        status, said = finish(run)
    assert status == distributed.PREEMPTED and "process 0 was asked to stop (SIGTERM)" in said, said
    (step,) = map(int, re.findall(r"asked to stop: saved step (\d+); the same command goes on", said))
    assert saved(tmp_path / "run")[-1] == step and ended(tmp_path / "run")["how"] == "preempted"
    with train(data, tmp_path / "run", *steps) as run:
        assert f"parameters, steps {step} to 400" in read_until(run, "samples/s")
        run.kill()
        run.wait()
    assert not (tmp_path / "run" / "ended.json").exists()
    with train(data, tmp_path / "run", *steps) as run:
        status, said = finish(run, within=120)
    assert status == 0 and ended(tmp_path / "run") | {"how": "finished", "status": 0} == ended(tmp_path / "run")
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    seconds = records[-1]["seconds"]
    assert seconds["lost"] > 1 and seconds["computing"] > 0.1 and seconds["compiling"] > 0.1
    assert abs(sum(seconds.values()) - (records[-1]["time"] - records[0]["time"])) < 10  # but for the start until there
    assert records[-1]["time"] - began < sum(seconds.values()) + 60
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 401))


@pytest.mark.slow
def test_a_read_that_never_returns_is_left_with_the_step_saved(data, tmp_path):
    """Asked to stop while it waits for a file, one process saves what it has at once."""
    blocked = make_data(tmp_path / "blocked")
    with train(blocked, tmp_path / "run", "--config.training.steps=100000") as run:
        read_until(run, "step 3 ")
        block_all(blocked)
        time.sleep(5)
        run.send_signal(signal.SIGTERM)
        status, said = finish(run, within=30)
    assert status == distributed.PREEMPTED and f"saved step {saved(tmp_path / 'run')[-1]}" in said, said


@pytest.mark.slow
def test_a_process_that_stands_still_ends_with_its_stacks(data, tmp_path):
    blocked = make_data(tmp_path / "blocked")
    block_all(blocked)
    with train(blocked, tmp_path / "run", "--patience=0.05", "--config.mesh.domain=2", processes=2) as run:
        status, said = finish(run)
    assert status == distributed.STUCK, said
    assert "no sign of life for 3 s while reading" in said and "most recent call first" in said
    assert said.count("ends with status 124") == 2 and ended(tmp_path / "run")["how"] == "failed"


@pytest.mark.slow
def test_what_fails_on_one_process_ends_both_at_once_with_the_reason(data, tmp_path):
    """Chunks are damaged; whoever is the first, the other does not wait for it."""
    broken = make_data(tmp_path / "broken")
    for shard in (broken / "archive/fields").rglob("0"):
        if shard.is_file():
            content = bytearray(shard.read_bytes())
            content[len(content) // 2] ^= 0xFF
            shard.write_bytes(content)
    options = ["--config.mesh.domain=2", "--config.training.steps=2000"]
    with train(broken, tmp_path / "run", *options, processes=2) as run:
        status, said = finish(run)
    assert status == distributed.FAILED, said
    assert re.search(r"train: .*cannot read time 2000-01-\d\d.*Digest mismatch", said)
    assert said.count("ends with status 1") == 2
    assert "cannot read time" in ended(tmp_path / "run")["why"] and "Traceback" in ended(tmp_path / "run")["traceback"]


@pytest.mark.slow
def test_a_save_that_fails_on_one_process_ends_both_at_once(data, tmp_path):
    """A disk that takes no files of more than 4 kB, seen by the second process alone."""
    limit = "if [[ $JAX_PROCESS_ID == 1 ]]; then ulimit -f 4; fi"
    options = ["--config.mesh.domain=2", "--config.training.steps=100000", "--config.model.embed=64"]
    with train(data, tmp_path / "run", *options, processes=2, before=limit) as run:
        status, said = finish(run)
    assert status in (distributed.FAILED, distributed.FAULT), said
    assert "File too large" in said and ended(tmp_path / "run")["how"] == "failed"
    assert not saved(tmp_path / "run")


@pytest.mark.slow
def test_two_processes_stop_at_one_step_and_a_cold_cache_is_waited_for(data, tmp_path):
    options = [f"--config.data.source={data}/source.zarr", "--config.mesh.domain=2", "--config.training.steps=100000"]
    with train(data, tmp_path / "run", *options, processes=2, WEATHERMIXER_CACHE=str(tmp_path / "cache")) as run:
        pids = []
        read_until(run, "step 12 ")
        for process in os.popen(f"pgrep -f 'workdir={tmp_path}/run'").read().split():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # pgrep's own
                if "JAX_PROCESS_ID=1\0" in open(f"/proc/{process}/environ").read():
                    pids.append(int(process))
        os.kill(pids[-1], signal.SIGUSR1)
        status, said = finish(run)
    assert status == distributed.PREEMPTED and "process 1 was asked to stop (SIGUSR1)" in said, said
    assert ended(tmp_path / "run")["how"] == "preempted"
