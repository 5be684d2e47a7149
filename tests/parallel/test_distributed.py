"""Processes that join, wait for each other, stop and end together: real ones, over gloo."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from weathermixer.parallel.mesh import COPY_ENGINES, KNOWN_TO_JAX, make_mesh, sharding
from weathermixer.training.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]


def test_two_processes_train_save_and_stop_together(tmp_path):
    """launch/local.sh, two processes with two devices each: one sum over both, one checkpoint, one step to stop at."""
    command = [
        "bash",
        str(ROOT / "launch/local.sh"),
        "2",
        sys.executable,
        str(ROOT / "tests/two_processes.py"),
        tmp_path,
    ]
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
    }
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        said = []
        while "".join(said).count("saved") < 2 and (line := run.stdout.readline()):
            said.append(line)
        run.send_signal(signal.SIGTERM)  # the script passes it on
        said += run.stdout.readlines()
    said = "".join(said)
    assert run.returncode == 0, said
    for process in (0, 1):
        assert f"process {process} of 2 joins the run at localhost:" in said
        assert re.search(rf"joined: process {process} of 2 on \S+, 2 of 4 devices here \(cpu\)", said)
    steps = re.findall(r"stopped at (\d+)", said)
    assert len(steps) == 2 and steps[0] == steps[1], said
    assert said.count("first step, with compilation") == 1  # process 0 alone writes the log

    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        step = int(steps[0])
        assert checkpoints.steps() == [2, step]
        x = jax.ShapeDtypeStruct((8,), np.float32, sharding=sharding(make_mesh(1, 2, 2), "lat"))
        np.testing.assert_array_equal(np.asarray(checkpoints.restore({"x": x})["x"]), np.arange(8) + step)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_one_process_stops_when_asked_to(sent):
    """Twice by SIGTERM; while its main thread looks at nothing, it is noticed all the same."""
    program = (
        "import time; from weathermixer.parallel import distributed as d\n"
        "d.initialize(); d.mind_signals(); d.preempted(step := 0); print('ready', flush=True)\n"
        "while not d.preempted(step := step + 1): time.sleep(0.01)\n"
        "print('stopped')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "ready\n"
        for _ in range(2 if sent == signal.SIGTERM else 1):
            run.send_signal(sent)
        assert run.stdout.read() == "stopped\n"
        assert run.stderr.read() == f"process 0 was asked to stop ({sent.name})\n"
    assert run.returncode == 0


def test_a_platform_without_a_device_is_said_in_a_line():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cuda"}
    program = "from weathermixer.parallel.distributed import initialize; initialize()"
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert re.search(
        r"^ValueError: JAX_PLATFORMS=cuda: .*Set JAX_PLATFORMS=cpu to do without", run.stderr, re.MULTILINE
    )


def test_xla_knows_the_flag_that_is_set_for_copy_engines():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    code = (
        "from weathermixer.parallel import distributed as d; d.initialize(); import os; print(os.environ['XLA_FLAGS'])"
    )
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    since, until = KNOWN_TO_JAX
    known = since <= jax.__version_info__ < until
    assert (found.returncode, found.stdout.strip()) == (0, COPY_ENGINES if known else ""), found.stderr
