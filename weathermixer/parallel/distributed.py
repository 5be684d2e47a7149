"""Several processes as one run: who they are, which devices each takes, and when they are asked to stop.

A process learns its place from the environment, in this order:

    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES, JAX_PROCESS_ID      launch/local.sh, Kubernetes
    SLURM's variables of a job step                                                          srun, launch/slurm.sbatch
    none of them: one process, with all devices that it sees
"""

import itertools
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import jax
from jax.experimental import multihost_utils

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

_terminated = threading.Event()
_exchanges = itertools.count()


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


def initialize(*, heartbeat_timeout_seconds: int = 30, initialization_timeout_seconds: int = 300) -> None:
    """Joins this process with the others of its run; to be called once, before anything that looks for devices.

    Where a process dies, the others stop after `heartbeat_timeout_seconds`. Raises ValueError where the environment
    contradicts itself, or where one sees no GPU that its job has.
    """
    place = find_place(os.environ)
    if place is None:
        return
    # JAX ends a process that finds no coordinator, without an exception: this line says what it was waiting for
    print(
        f"process {place.process} of {place.processes} joins the run at {place.coordinator}, and waits up to "
        f"{initialization_timeout_seconds} s for the others",
        file=sys.stderr,
        flush=True,
    )
    jax.distributed.initialize(
        place.coordinator,
        num_processes=place.processes,
        process_id=place.process,
        local_device_ids=place.devices,
        cluster_detection_method="deactivate",  # find_place has done it
        heartbeat_timeout_seconds=heartbeat_timeout_seconds,
        initialization_timeout=initialization_timeout_seconds,
    )
    check_devices(os.environ, platform=jax.default_backend(), local_devices=jax.local_device_count(), place=place)


def preempted(step: int) -> bool:
    """True from the step on at which all processes should save and stop, because one of them was sent SIGTERM.

    Every process has to ask at every step, with the same number: they agree on the step. Alone, a process minds
    SIGTERM from its first question on, and the second SIGTERM ends it as usual.
    """
    if jax.distributed.is_initialized():  # JAX itself watches for SIGTERM then
        return multihost_utils.reached_preemption_sync_point(step)
    if not _terminated.is_set() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _remember)
    return _terminated.is_set()


def wait_for_all(what: str) -> None:
    """Waits until every process has come here; `what` they wait for is in the error where one does not."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def exchange(what: str, text: str, *, timeout_seconds: int = 1200) -> list[str]:
    """What every process says, in their order, without the devices; all have to ask, in the same order.

    Raises where one does not come in time, or has died.
    """
    if jax.process_count() == 1:
        return [text]
    from jax._src.distributed import global_state  # JAX has no public name for its key-value store

    client, folder = global_state.client, f"{what}/{next(_exchanges)}"
    client.key_value_set(f"{folder}/{jax.process_index():06d}", text)
    client.wait_at_barrier(folder, timeout_seconds * 1000)
    return [said for _, said in sorted(client.key_value_dir_get(f"{folder}/"))]


def check_same(facts: Mapping[str, object], what: str) -> None:
    """Raises ValueError, on every process, where they were told different things; it names the first that differs."""
    first, *others = (json.loads(text) for text in exchange(what, json.dumps(facts)))
    for process, other in enumerate(others, 1):
        for name in first | other:
            if first.get(name) != other.get(name):
                raise ValueError(
                    f"processes differ in {what}: {name} is {first.get(name)!r} on process 0, {other.get(name)!r} on "
                    f"process {process}; start all of them with the same command and software"
                )


def _remember(*_) -> None:
    _terminated.set()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def describe() -> str:
    """`process 0 of 2, 4 of 8 devices here (NVIDIA H200)`, for the log's first line."""
    kinds = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    return (
        f"process {jax.process_index()} of {jax.process_count()}, {jax.local_device_count()} of {jax.device_count()} "
        f"devices here ({kinds})"
    )


def find_place(environment: Mapping[str, str]) -> Place | None:
    """This process's place by its environment, or None where it is alone; ValueError where variables are missing."""
    given = [name for name in _VARIABLES if name in environment]
    if given:
        missing = [name for name in _VARIABLES if name not in environment]
        if missing:
            raise ValueError(
                f"{', '.join(given)} set, but not {', '.join(missing)}: a run of several processes needs all"
            )
        address, processes, process = (environment[name] for name in _VARIABLES)
        return Place(address, _integer("JAX_NUM_PROCESSES", processes), _integer("JAX_PROCESS_ID", process))
    if "SLURM_STEP_NODELIST" in environment and environment.get("SLURM_NTASKS", "1") != "1":
        # a port of the dynamic range by the job's number, as JAX's own detection picks it
        port = 65535 - 2**12 + 1 + int(environment["SLURM_JOB_ID"]) % 2**12
        return Place(
            f"{first_host(environment['SLURM_STEP_NODELIST'])}:{port}",
            int(environment["SLURM_NTASKS"]),
            int(environment["SLURM_PROCID"]),
            slurm_devices(environment),
        )
    return None


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list: `node[003-007,12],login1` -> `node003`."""
    found = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    if not found:
        raise ValueError(f"cannot read a host from SLURM_STEP_NODELIST={nodes!r}")
    return "".join(part or "" for part in found.groups())


def slurm_devices(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """The GPUs of this task among those it sees: all for one task per node, an equal share for several.

    Left alone, JAX gives each SLURM task one GPU, so that a task per node uses one of eight. A task that SLURM bound
    to its own GPUs (--gpus-per-task) sees only these, and takes them all: None. ValueError where GPUs do not divide.
    """
    tasks = int(re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1")).group())
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if tasks == 1 or not visible:
        return None
    gpus, on_node = len(visible.split(",")), int(environment.get("SLURM_GPUS_ON_NODE", "0"))
    if gpus * tasks == on_node or gpus == 1:
        return None
    if gpus % tasks:
        raise ValueError(
            f"{tasks} SLURM tasks on a node share {gpus} GPUs (CUDA_VISIBLE_DEVICES={visible}): choose a number of "
            f"--ntasks-per-node that divides {gpus}, best 1"
        )
    share, local = gpus // tasks, int(environment["SLURM_LOCALID"])
    return tuple(range(local * share, (local + 1) * share))


def check_devices(environment: Mapping[str, str], *, platform: str, local_devices: int, place: Place) -> None:
    """Raises ValueError where a job was given GPUs and JAX does not use all that are this process's."""
    on_node = int(environment.get("SLURM_GPUS_ON_NODE", "0"))
    if on_node and platform == "cpu" and environment.get("JAX_PLATFORMS") != "cpu":
        raise ValueError(
            f"SLURM gave this node {on_node} GPUs, but JAX sees none: install the package with its [gpu] extra, or set "
            "JAX_PLATFORMS=cpu"
        )
    if platform == "gpu" and place.devices is not None and local_devices != len(place.devices):
        raise ValueError(
            f"process {place.process} sees {local_devices} GPUs and should have {len(place.devices)} of them: check "
            "CUDA_VISIBLE_DEVICES, --gpus-per-task and --gpu-bind"
        )


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}={text!r} is not a number") from None
