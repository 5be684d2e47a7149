"""The launch scripts: several processes on this machine end together, and what SLURM and Kubernetes are told agrees."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml

from experiments import ends
from experiments.prepare import make_parser
from launch import dask_slurm
from weathermixer.archive.verify import verify_archive
from weathermixer.parallel import distributed
from weathermixer.parallel.joining import find_place

LAUNCH = Path(__file__).parent.parent.parent / "launch"


def start(processes, program, **environment):
    """launch/local.sh with a Python program."""
    command = ["bash", str(LAUNCH / "local.sh"), str(processes), sys.executable, "-c", program]
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "JAX_PLATFORMS": "cpu", **environment}
    # bash traps no signal that it is started without, as SIGINT is behind a shell's &
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def is_alive(pid):
    """Whether a process runs; one that ended and was not asked how does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_the_end(pids, seconds=20):
    end = time.monotonic() + seconds
    while any(map(is_alive, pids)):
        assert time.monotonic() < end, f"still there: {[pid for pid in pids if is_alive(pid)]}"
        time.sleep(0.05)


# Says its process id and its child's, then sleeps; STUBBORN ones do not mind SIGTERM.
SLEEP = """
import os, signal, subprocess, sys, time
if "STUBBORN" in os.environ: signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


def read_pids(run, processes):
    return [int(pid) for _ in range(processes) for pid in run.stdout.readline().split()]


@pytest.mark.parametrize("processes", [1, 3])
def test_all_end_well(processes):
    place = "f\"{os.environ['JAX_PROCESS_ID']} {os.environ['JAX_NUM_PROCESSES']}\\n\".encode()"
    with start(processes, f"import os; os.write(1, {place})") as run:
        said = sorted(run.stdout.read().splitlines())
    assert run.returncode == 0 and said == [f"{process} {processes}" for process in range(processes)]


def test_all_that_fail_at_once_end_the_script():
    """Their ends come as one: it must not wait for another."""
    for _ in range(3):
        with start(4, "import sys; sys.exit(3)") as run:
            assert run.wait(timeout=30) == 3


@pytest.mark.parametrize("stubborn", [False, True])
def test_where_one_fails_the_others_are_ended_and_its_status_is_the_scripts(stubborn):
    environment = {"GRACE_SECONDS": "1", **({"STUBBORN": "1"} if stubborn else {})}
    fails = f"import os, sys, time\nif os.environ['JAX_PROCESS_ID'] == '1': time.sleep(1); sys.exit(5)\n{SLEEP}"
    with start(3, fails, **environment) as run:
        pids = read_pids(run, 2)
        assert run.wait(timeout=30) == 5
    wait_for_the_end(pids)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_all(sent):
    with start(2, SLEEP) as run:
        pids = read_pids(run, 2)
        run.send_signal(sent)
        assert run.wait(timeout=30) == 128 + signal.SIGTERM
    wait_for_the_end(pids)


def test_a_second_signal_kills():
    with start(2, SLEEP, STUBBORN="1") as run:
        pids = read_pids(run, 2)
        run.send_signal(signal.SIGINT)
        time.sleep(0.5)
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=30) == 128 + signal.SIGKILL
    wait_for_the_end(pids)


@pytest.mark.parametrize("stubborn", [False, True])
def test_none_outlives_a_script_that_is_killed(stubborn):
    environment = {"GRACE_SECONDS": "1", **({"STUBBORN": "1"} if stubborn else {})}
    with start(2, SLEEP, **environment) as run:
        pids = read_pids(run, 2)
        run.kill()
        wait_for_the_end(pids)


def test_usage():
    usage = subprocess.run(["bash", str(LAUNCH / "local.sh"), "two"], capture_output=True, text=True)
    assert usage.returncode == 2 and usage.stderr.startswith("usage: ")


@pytest.mark.parametrize(("processes", "shares"), [(2, ["0,1", "2,3"]), (4, ["0", "1", "2", "3"]), (3, None)])
def test_local_script_shares_the_gpus(tmp_path, processes, shares):
    """On a machine whose nvidia-smi lists four."""
    listing = tmp_path / "nvidia-smi"
    listing.write_text("#!/bin/sh\nprintf '0\\n1\\n2\\n3\\n'\n")
    listing.chmod(0o755)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES")
    }
    environment["PATH"] = f"{tmp_path}:{os.path.dirname(sys.executable)}:{environment['PATH']}"
    command = ["bash", str(LAUNCH / "local.sh"), str(processes), "printenv", "JAX_LOCAL_DEVICE_IDS"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if shares is None:
        assert run.returncode == 2
        assert run.stderr == "4 GPUs cannot be shared by 3 processes evenly\n"
    else:
        assert sorted(run.stdout.split()) == shares


@pytest.mark.parametrize(("given", "cores"), [({"SLURM_CPUS_PER_TASK": "48"}, "48"), ({}, "1")])
def test_srun_gets_the_cores_that_sbatch_was_given(tmp_path, given, cores):
    stub(tmp_path / "srun", 'echo "$SRUN_CPUS_PER_TASK $*"')
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **given}
    command = ["bash", str(LAUNCH / "slurm.sbatch"), "--config=quickstart", "--workdir=a b"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    words = "--kill-on-bad-exit=0 --wait=300 python -u -m experiments.train --config=quickstart --workdir=a b"
    assert run.stdout == f"{cores} {words}\n"


def stub(path, line):
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [(0, 0, False), (1, 0, False), (2, 0, False), (75, 99, True), (70, 0, True), (137, 9, True), (124, 10, False)],
)
def test_a_job_of_slurm_goes_back_into_the_queue(tmp_path, status, restarts, requeued):
    """Where it was asked to stop, always, and after crashes, some times; not where it would fail again."""
    stub(tmp_path / "srun", f"exit {status}")
    stub(tmp_path / "scontrol", 'echo "scontrol $*"')
    job = {"SLURM_JOB_ID": "77", **({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {})}
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **job}
    run = subprocess.run(["bash", str(LAUNCH / "slurm.sbatch")], env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (status, "scontrol requeue 77\n" if requeued else "")


def test_slurm_directives():
    """They stand before the first command, where sbatch looks for them, and say one task per node."""
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [shlex.split(line.removeprefix("#SBATCH")) for line in lines if line.startswith("#SBATCH")]
    assert all(line.startswith("#SBATCH") for line in lines[first_command - len(directives) : first_command])
    options = dict(option.removeprefix("--").partition("=")[::2] for (option,) in directives)
    assert options["ntasks-per-node"] == "1"
    assert options["signal"] == "TERM@180"


def statuses(rule):
    return rule.get("onExitCodes", {}).get("values", [])


def test_kubernetes_places_agree():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    pods = job["spec"]["template"]["spec"]
    variables = {entry["name"]: entry.get("value") for entry in pods["containers"][0]["env"]}
    assert set(variables) == {"JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES"}
    assert find_place(variables | {"JOB_COMPLETION_INDEX": "1"}).process == 1
    assert int(variables["JAX_NUM_PROCESSES"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert variables["JAX_COORDINATOR_ADDRESS"].startswith(f"{job['metadata']['name']}-0.{pods['subdomain']}:")
    assert pods["subdomain"] == service["metadata"]["name"]
    by_status = {s: rule["action"] for rule in job["spec"]["podFailurePolicy"]["rules"] for s in statuses(rule)}
    assert by_status == {distributed.FAILED: "FailJob", 2: "FailJob", distributed.PREEMPTED: "Ignore"}
    assert pods["restartPolicy"] == "Never"  # or Kubernetes refuses the policy
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()


def test_dasks_places_agree():
    job = yaml.safe_load((LAUNCH / "dask_kubernetes.yaml").read_text())
    runner, cluster = job["spec"]["job"]["spec"]["containers"][0], job["spec"]["cluster"]["spec"]
    words = runner["args"]
    options = make_parser().parse_args(words[words.index("experiments.prepare") + 1 :])
    assert options.dask == "$(DASK_SCHEDULER_ADDRESS)"
    service = cluster["scheduler"]["service"]
    assert service["selector"]["dask.org/cluster-name"] == job["metadata"]["name"]
    scheduler, worker = (cluster[part]["spec"]["containers"][0] for part in ("scheduler", "worker"))
    assert {port["targetPort"] for port in service["ports"]} == {port["name"] for port in scheduler["ports"]}
    assert scheduler["image"] == worker["image"] == runner["image"]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder with source.zarr, and SLURM's sbatch, whose jobs of one worker are processes of this machine."""
    xr.Dataset(
        {"2m_temperature": (("time", "latitude", "longitude"), 280 + np.random.default_rng(0).random((8, 4, 8)))},
        {
            "time": np.datetime64("2000-01-01", "ns") + np.arange(8) * np.timedelta64(6, "h"),
            "latitude": [67.5, 22.5, -22.5, -67.5],
            "longitude": np.arange(0, 360, 45),
        },
    ).to_zarr(tmp_path / "source.zarr", zarr_format=2)
    stub(tmp_path / "sbatch", 'setsid bash "$1" >>"$SLURM_LOG" 2>&1 &\necho Submitted batch job "$!"')
    stub(tmp_path / "scancel", 'kill -- "-$1"')
    monkeypatch.setenv("SLURM_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("PYTHONPATH", str(LAUNCH.parent))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "arguments, status, said",
    [
        (["--help"], 0, "  python -m launch.dask_slurm era5.zarr /scratch/me/era5.archive --channels=era5"),
        (["source.zarr"], 2, "launch.dask_slurm: the following arguments are required: dest\n"),
        (["source.zarr", "a", "--dask=local:2"], 2, "launch.dask_slurm: --dask, --workers: the jobs that this starts"),
        (["nowhere.zarr", "a"], 1, "launch.dask_slurm: no file at nowhere.zarr\n"),
        (["source.zarr", "a", "--dry-run"], 0, "Dask's workers (4 jobs of SLURM)"),
    ],
)
def test_jobs_for_a_prepare_start_after_all_is_known(slurm, monkeypatch, capsys, arguments, status, said):
    monkeypatch.setattr(dask_slurm, "open_cluster", None)  # is not called
    assert ends.call(dask_slurm.main, arguments) == status
    assert said in "".join(capsys.readouterr())


def test_jobs_of_slurm_prepare_an_archive(slurm, monkeypatch):
    dask_jobqueue = pytest.importorskip("dask_jobqueue", reason="no dask-jobqueue: pip install dask-jobqueue")
    small = {"cores": 1, "processes": 1, "memory": "1GB"}
    cluster = dask_jobqueue.SLURMCluster
    monkeypatch.setattr(dask_jobqueue, "SLURMCluster", lambda **options: cluster(**options | small))
    assert dask_slurm.main(["source.zarr", "archive", "--times-per-shard=1"]) == 0
    assert verify_archive("archive") == []
    monkeypatch.setenv("PATH", "/usr/bin")
    with pytest.raises(ValueError, match="there is no sbatch on the PATH"):
        dask_slurm.main(["source.zarr", "another"])
