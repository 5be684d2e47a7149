"""How a process finds its place in a run, and the others: by its environment, and by a roll that process 0 calls.

What is looked at, in this order:

    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES, JAX_PROCESS_ID      launch/local.sh, Kubernetes
    Open MPI's variables, which say the last two                                             mpirun
    SLURM's variables of a job step                                                          srun, launch/slurm.sbatch
    none of them: one process, with all devices that it sees

In an indexed Job or a JobSet of Kubernetes JOB_COMPLETION_INDEX is the third where that is not said. What SLURM says of
a job, but not of a step, counts for nothing: a shell in an allocation for four tasks is not one of the four. JAX's own
detection takes it for one, gives a SLURM task one GPU, and ends a process that waits in vain without an exception.
"""

import contextlib
import re
import socket
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ADDRESS, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
SAY_SECONDS = 30.0


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

    def read(name: str) -> int:
        if not environment[name].isdigit():
            raise ValueError(f"{name}={environment[name]!r} is not a number")
        return int(environment[name])

    address = environment.get(ADDRESS)
    if environment.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        size, rank, on_node, local = (
            read(f"OMPI_COMM_WORLD_{part}") for part in ("SIZE", "RANK", "LOCAL_SIZE", "LOCAL_RANK")
        )
        if address is None and on_node != size:
            raise ValueError(
                f"Open MPI started this as process {rank} of {size} on several hosts and does not say where process 0 "
                f"is: give it, mpirun -x {ADDRESS}=HOST:PORT, HOST the first of its hosts and PORT a free one there"
            )
        job = environment.get("PMIX_NAMESPACE") or environment.get("OMPI_MCA_ess_base_jobid", "")
        here = f"localhost:{_port(zlib.crc32(job.encode()))}"
        return Place(address or here, size, rank, share_devices(environment, tasks=on_node, local=local))
    if given := [name for name in (ADDRESS, PROCESSES, PROCESS) if name in environment]:
        own = "JOB_COMPLETION_INDEX" if PROCESS not in given and "JOB_COMPLETION_INDEX" in environment else PROCESS
        if missing := [name for name in (ADDRESS, PROCESSES, own) if name not in environment]:
            raise ValueError(
                f"{', '.join(given)} set, but not {', '.join(missing)}: a run of several processes needs all"
            )
        return Place(address, read(PROCESSES), read(own))
    if environment.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return None
    tasks = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    on_node = tasks[min(int(environment.get("SLURM_NODEID", "0")), len(tasks) - 1)]
    return Place(
        f"{first_host(environment['SLURM_STEP_NODELIST'])}:{_port(read('SLURM_JOB_ID'))}",
        read("SLURM_STEP_NUM_TASKS"),
        read("SLURM_PROCID"),
        share_devices(environment, tasks=on_node, local=read("SLURM_LOCALID")),
    )


def _port(job: int) -> int:
    """A port of the dynamic range by the job's number, as JAX's own detection picks it."""
    return 65535 - 2**12 + 1 + job % 2**12


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

    A task that SLURM bound to its own GPUs (--gpus-per-task) sees only these, and takes them all: None. ValueError
    where GPUs do not divide.
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


class Waiting:
    """Says now and then what `who` waits for; TimeoutError after so many seconds.

    waiting = Waiting("process 0", seconds=300)
    while not ...:
        waiting.go_on("process 1")
    """

    def __init__(self, who: str, seconds: float | int = float("inf")):
        self._who, self._seconds, self._started, self._said = who, seconds, time.monotonic(), SAY_SECONDS

    def go_on(self, what: str) -> float:
        """Says so where it is time; the seconds since the start."""
        waited = time.monotonic() - self._started
        if waited > self._seconds:
            raise TimeoutError(f"{self._who} waited {waited:.0f} s in vain for {what}")
        if waited > self._said:
            say(f"{self._who} waits for {what} ({waited:.0f} s)")
            self._said += SAY_SECONDS
        return waited


def call_roll(place: Place, *, seconds: float | int) -> None:
    """Waits until all processes of a run are there; process 0 answers where JAX's own service listens afterwards.

    Raises TimeoutError after `seconds`, OSError where process 0 cannot listen, and ValueError where processes were told
    different numbers of them.
    """
    host, _, port = place.coordinator.rpartition(":")
    waiting = Waiting(f"process {place.process} of {place.processes}", seconds)
    if place.process == 0:
        _call(place, int(port), waiting)
    else:
        _answer(place, (host.strip("[]"), int(port)), waiting)


def _call(place: Place, port: int, waiting: Waiting) -> None:
    there: dict[int, socket.socket] = {}
    dual = dict(family=socket.AF_INET6, dualstack_ipv6=True) if socket.has_dualstack_ipv6() else {}
    try:
        server = socket.create_server(("", port), backlog=place.processes, **dual)
    except OSError as error:
        raise OSError(f"process 0 cannot listen at {place.coordinator}: {error}; choose another port") from error
    with server:
        server.settimeout(1)
        while missing := [process for process in range(1, place.processes) if process not in there]:
            waiting.go_on(f"{name_processes(missing)} to join at {place.coordinator}")
            with contextlib.suppress(OSError):
                connection = server.accept()[0]
                connection.settimeout(5)
                if not (words := re.fullmatch(rb"(\d+) (\d+)\n", connection.recv(64))):  # not one of ours
                    connection.close()
                    continue
                process, processes = map(int, words.groups())
                if processes != place.processes:
                    raise ValueError(
                        f"process {process} was told of {processes} processes, process 0 of {place.processes}"
                    )
                there[process] = connection
    for connection in there.values():
        with contextlib.suppress(OSError), connection:
            connection.sendall(b"go")
            connection.recv(1)  # until the other one has closed: its end keeps the port for a while, not this one


def _answer(place: Place, address: tuple[str, int], waiting: Waiting) -> None:
    reason: Exception | str = "no answer"
    connection: socket.socket | None = None
    while True:
        waiting.go_on(f"process 0 at {place.coordinator}: {reason}")
        try:
            if connection is None:
                connection = socket.create_connection(address, timeout=1)
                connection.sendall(b"%d %d\n" % (place.process, place.processes))
            if connection.recv(2) == b"go":
                connection.close()
                return
            raise OSError("something else answers")
        except TimeoutError:
            reason = "it waits for others" if connection else "no answer"
        except OSError as error:
            reason, connection = error, None
            time.sleep(0.2)


def name_processes(numbers: Sequence[int]) -> str:
    """`process 3`, `processes 1, 2 and 5`, or the first few of many."""
    shown = [str(number) for number in numbers[:8]] + [f"{len(numbers) - 8} more"] * (len(numbers) > 8)
    return f"process {shown[0]}" if len(shown) == 1 else f"processes {', '.join(shown[:-1])} and {shown[-1]}"


def say(line: str) -> None:
    sys.stderr.write(line + "\n")  # in one piece, so that lines of several processes do not mix
    sys.stderr.flush()
