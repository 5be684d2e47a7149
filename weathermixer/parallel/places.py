"""A process's place in a run, by its environment. What is looked at, in this order:

    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES, JAX_PROCESS_ID      launch/local.sh, Kubernetes
    Open MPI's variables, which say the last two                                             mpirun
    SLURM's variables of a job step                                                          srun, launch/slurm.sbatch
    none of them: one process, with all devices that it sees

In an indexed Job or a JobSet of Kubernetes JOB_COMPLETION_INDEX is the third where that is not said. What SLURM says of
a job, but not of a step, counts for nothing: a shell in an allocation for four tasks is not one of the four.
"""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

ADDRESS, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


@dataclass(frozen=True)
class Place:
    """A process's place in a run: the address of process 0, the number of processes, its own, and its local devices."""

    coordinator: str
    processes: int
    process: int
    devices: tuple[int, ...] | None = None  # indices among the visible GPUs; None: all of them

    def __post_init__(self):
        if not 0 <= self.process < self.processes:
            raise ValueError(f"process {self.process} of {self.processes}: ids are 0 ... {self.processes - 1}")
        if not re.fullmatch(r"\S+:\d+", self.coordinator):
            raise ValueError(f"coordinator address {self.coordinator!r} must be host:port")


def find_place(environment: Mapping[str, str]) -> Place | None:
    """This process's place by its environment, or None where it is alone; ValueError where variables are missing."""
    given = {name: environment[name] for name in (ADDRESS, PROCESSES, PROCESS) if name in environment}
    if environment.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        return _open_mpi_place(environment, given)
    if given:
        if PROCESS not in given and "JOB_COMPLETION_INDEX" in environment:
            given[PROCESS] = environment["JOB_COMPLETION_INDEX"]
        missing = [name for name in (ADDRESS, PROCESSES, PROCESS) if name not in given]
        if missing:
            raise ValueError(
                f"{', '.join(given)} set, but not {', '.join(missing)}: a run of several processes needs all"
            )
        return Place(given[ADDRESS], *(_integer(name, given[name]) for name in (PROCESSES, PROCESS)))
    if environment.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return None
    tasks = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    on_node = tasks[min(_integer("SLURM_NODEID", environment.get("SLURM_NODEID", "0")), len(tasks) - 1)]
    # a port of the dynamic range by the job's number, as JAX's own detection picks it
    port = 65535 - 2**12 + 1 + int(environment["SLURM_JOB_ID"]) % 2**12
    return Place(
        f"{first_host(environment['SLURM_STEP_NODELIST'])}:{port}",
        _integer("SLURM_STEP_NUM_TASKS", environment["SLURM_STEP_NUM_TASKS"]),
        _integer("SLURM_PROCID", environment["SLURM_PROCID"]),
        share_devices(environment, tasks=on_node, local=int(environment["SLURM_LOCALID"])),
    )


def _open_mpi_place(environment: Mapping[str, str], given: Mapping[str, str]) -> Place:
    size, rank, on_node, local = (
        _integer(name, environment[name])
        for name in (f"OMPI_COMM_WORLD_{part}" for part in ("SIZE", "RANK", "LOCAL_SIZE", "LOCAL_RANK"))
    )
    address = given.get(ADDRESS)
    if address is None:
        if on_node != size:
            raise ValueError(
                f"Open MPI started this as process {rank} of {size} on several hosts and does not say where process 0 "
                f"is: give it, mpirun -x {ADDRESS}=HOST:PORT, HOST the first of its hosts and PORT a free one there"
            )
        job = environment.get("PMIX_NAMESPACE") or environment.get("OMPI_MCA_ess_base_jobid", "")
        address = f"localhost:{65535 - 2**12 + 1 + zlib.crc32(job.encode()) % 2**12}"
    return Place(address, size, rank, share_devices(environment, tasks=on_node, local=local))


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list: `node[003-007,12],login1` -> `node003`."""
    found = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    if not found:
        raise ValueError(f"cannot read a host from SLURM_STEP_NODELIST={nodes!r}")
    return "".join(part or "" for part in found.groups())


def tasks_per_node(text: str) -> list[int]:
    """[2, 2, 1] from SLURM's `2(x2),1`."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, nodes in found for _ in range(int(nodes or 1))]


def share_devices(environment: Mapping[str, str], *, tasks: int, local: int) -> tuple[int, ...] | None:
    """The GPUs of a node's task `local` among those it sees: all for one task per node, an equal share for several.

    Left alone, JAX gives each SLURM task one GPU, so that a task per node uses one of eight. A task that SLURM bound
    to its own GPUs (--gpus-per-task) sees only these, and takes them all: None. ValueError where GPUs do not divide.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if tasks == 1 or not visible:
        return None
    gpus, on_node = len(visible.split(",")), int(environment.get("SLURM_GPUS_ON_NODE", "0"))
    if gpus * tasks == on_node or gpus == 1:
        return None
    if gpus % tasks:
        raise ValueError(
            f"{tasks} tasks on a node share {gpus} GPUs (CUDA_VISIBLE_DEVICES={visible}): choose a number of tasks per "
            f"node (--ntasks-per-node of SLURM) that divides {gpus}, best 1"
        )
    share = gpus // tasks
    return tuple(range(local * share, (local + 1) * share))


def check_devices(environment: Mapping[str, str], *, platform: str, local_devices: int, place: Place | None) -> None:
    """Raises ValueError where a job was given GPUs and JAX does not use all that are this process's."""
    on_node = int(environment.get("SLURM_GPUS_ON_NODE", "0"))
    if on_node and platform == "cpu" and environment.get("JAX_PLATFORMS") != "cpu":
        raise ValueError(
            f"SLURM gave this node {on_node} GPUs, but JAX sees none: install the package with its [gpu] extra, or set "
            "JAX_PLATFORMS=cpu"
        )
    if place and platform == "gpu" and place.devices is not None and local_devices != len(place.devices):
        raise ValueError(
            f"process {place.process} sees {local_devices} GPUs and should have {len(place.devices)} of them: check "
            "CUDA_VISIBLE_DEVICES, --gpus-per-task and --gpu-bind"
        )


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}={text!r} is not a number") from None
