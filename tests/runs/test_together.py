"""Two real processes of one run: one owner, and told the same, or all of them end with the same line."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs.test_run import prepare, weather

ROOT = Path(__file__).parents[2]
CONFIG = """
from ml_collections import ConfigDict
from tests.experiments.test_train import make_run_settings

def get_config():
    changes = dict(data__train=("2000-01-01", "2000-01-07"), training__steps=2, training__checkpoint_every=1)
    return ConfigDict(make_run_settings(**changes, mesh__domain=2, evaluation__every=0).values())
"""


def train_together(folder, *options):
    """[(status, last line on stderr)] of two processes, each with options of its own."""
    (folder / "config.py").write_text(CONFIG)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    command = [sys.executable, "-m", "experiments.train", f"--config={folder / 'config.py'}"]
    pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    processes = [
        subprocess.Popen([*command, *own], env=environment | {"JAX_PROCESS_ID": str(number)}, **pipes)
        for number, own in enumerate(options)
    ]
    try:
        said = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text.splitlines()[-1]) for process, text in zip(processes, said, strict=True)]


@pytest.mark.slow
def test_processes_that_were_told_different_things_name_them_and_end(tmp_path):
    archives = [prepare(weather(seed=seed), tmp_path / f"archive{seed}").path for seed in range(2)]
    own = [f"--workdir={tmp_path / 'run'}", f"--data={archives[0]}"]
    for other, what in (
        ([*own, "--config.seed=1"], "processes differ in the run: seed is 0 on process 0, 1 on process 1; start all"),
        ([own[0], f"--data={archives[1]}"], "processes differ in the archive: checksum is "),
    ):
        for status, line in train_together(tmp_path, own, other):
            assert status == 1 and what in line, line


@pytest.mark.slow
def test_two_processes_are_one_owner_and_skip_what_is_damaged_together(tmp_path):
    archive = prepare(weather(), tmp_path / "archive").path
    own = [f"--workdir={tmp_path / 'run'}", f"--data={archive}"]
    assert [status for status, _ in train_together(tmp_path, own, own)] == [0, 0]
    assert not (tmp_path / "run" / "owner.json").exists()
    damaged = sorted((tmp_path / "run" / "checkpoints" / "2" / "state" / "ocdbt.process_1" / "d").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    assert [status for status, _ in train_together(tmp_path, own, own)] == [0, 0]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "step 2 is damaged" in log and "2.aside-" in log and log.count("saved step 2: ") == 2
    (tmp_path / "run" / "owner.json").write_text('{"host": "node7", "process": 12, "machine": "another"}')
    # it is renewed by nobody, but young: watched for two minutes; here it is taken instead
    assert [status for status, _ in train_together(tmp_path, [*own, "--take-over"], [*own, "--take-over"])] == [0, 0]
