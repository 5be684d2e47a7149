"""Places of processes by their environment, two real processes over gloo, and the launch scripts."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from weathermixer.parallel.distributed import Place, check_devices, find_place, first_host, slurm_devices
from weathermixer.parallel.mesh import make_mesh, sharding
from weathermixer.training.checkpoint import open_checkpoints

ROOT = Path(__file__).parents[2]
ALONE = Place("node1:1234", 1, 0)

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[003-004]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_GPUS_ON_NODE": "8",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
}


def test_alone_without_variables():
    assert find_place({}) is None
    assert find_place({**SLURM, "SLURM_NTASKS": "1"}) is None


def test_a_place_by_three_variables():
    environment = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    assert find_place(environment) == Place("host:1234", 4, 3)
    assert find_place({**SLURM, **environment}) == Place("host:1234", 4, 3)  # said outright, it counts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_PROCESS_ID": None}, "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES set, but not JAX_PROCESS_ID"),
        ({"JAX_PROCESS_ID": "4"}, r"process 4 of 4: ids are 0 ... 3"),
        ({"JAX_PROCESS_ID": "first"}, "JAX_PROCESS_ID='first' is not a number"),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "coordinator address 'host' must be host:port"),
    ],
)
def test_variables_that_contradict(changes, message):
    environment = {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"} | changes
    with pytest.raises(ValueError, match=message):
        find_place({name: value for name, value in environment.items() if value is not None})


def test_slurm_gives_a_task_per_node_all_its_gpus():
    """JAX by itself would give this task GPU 0 alone."""
    assert find_place(SLURM) == Place("node003:61441", 2, 1, None)


@pytest.mark.parametrize(
    ("tasks", "local", "visible", "devices"),
    [
        ("8(x2)", "3", "0,1,2,3,4,5,6,7", (3,)),  # a GPU per task, all visible
        ("2(x2)", "1", "0,1,2,3,4,5,6,7", (4, 5, 6, 7)),  # half of them per task
        ("2(x2)", "1", "4,5,6,7", None),  # bound by SLURM: just what it sees
        ("8(x2)", "3", "3", None),
        ("2", "1", None, None),  # a CPU cluster
    ],
)
def test_slurm_shares_a_nodes_gpus_among_its_tasks(tasks, local, visible, devices):
    environment = SLURM | {"SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_LOCALID": local, "CUDA_VISIBLE_DEVICES": visible}
    assert slurm_devices({name: value for name, value in environment.items() if value is not None}) == devices


def test_gpus_that_tasks_do_not_divide():
    environment = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "3"}
    with pytest.raises(ValueError, match="3 SLURM tasks on a node share 8 GPUs .*ntasks-per-node"):
        slurm_devices(environment)


def test_gpus_that_jax_does_not_see():
    with pytest.raises(ValueError, match=r"SLURM gave this node 8 GPUs, but JAX sees none: .*\[gpu\]"):
        check_devices(SLURM, platform="cpu", local_devices=1, place=ALONE)
    check_devices(SLURM | {"JAX_PLATFORMS": "cpu"}, platform="cpu", local_devices=1, place=ALONE)
    with pytest.raises(ValueError, match="process 1 sees 1 GPUs and should have 4 of them"):
        check_devices(SLURM, platform="gpu", local_devices=1, place=Place("node003:1", 2, 1, (4, 5, 6, 7)))


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("n[003-7],x", "n003"),
        ("n[3,5-7]", "n3"),
        ("n[1-2]-ib,x", "n1-ib"),
    ],
)
def test_first_host_of_a_node_list(nodes, host):
    assert first_host(nodes) == host


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
        assert f"joined: process {process} of 2, 2 of 4 devices here (cpu)" in said
    steps = re.findall(r"stopped at (\d+)", said)
    assert len(steps) == 2 and steps[0] == steps[1], said
    assert said.count("first step, with compilation") == 1  # process 0 alone writes the log

    with open_checkpoints(tmp_path / "checkpoints") as checkpoints:
        step = int(steps[0])
        assert checkpoints.steps() == [2, step]
        x = jax.ShapeDtypeStruct((8,), np.float32, sharding=sharding(make_mesh(1, 2, 2), "lat"))
        np.testing.assert_array_equal(np.asarray(checkpoints.restore({"x": x})["x"]), np.arange(8) + step)


def test_one_process_stops_on_sigterm():
    program = (
        "import time; from weathermixer.parallel.distributed import initialize, preempted\n"
        "initialize(); preempted(step := 0); print('ready', flush=True)\n"
        "while not preempted(step := step + 1): time.sleep(0.01)\n"
        "print('stopped')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "ready\n"
        run.send_signal(signal.SIGTERM)
        assert run.stdout.read() == "stopped\n"
    assert run.returncode == 0
