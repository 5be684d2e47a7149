"""A record of simulated weather, for a first run with no download: a dry atmosphere on a grid of WeatherBench 2.

    simulate("simulation.zarr", days=600)

The record is made by independent members, each in a process of its own that is pinned to one core: XLA's thread pool
gains nothing on fields this small and makes the speed swing. Members lie one after the other in time, with a gap
between them, which training pairs never span. They run on the CPU and leave the caller's JAX alone.

What is finished is kept: a call that was stopped in any way goes on where it was and ends with the same bits, and a
complete record of the same settings is used again.
"""

import collections
import fcntl
import importlib.util
import itertools
import os
import pathlib
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import weathermixer
from weathermixer.archive.progress import Progress
from weathermixer.simulation.member import DAY_DONE, RECORD, read_day
from weathermixer.simulation.record import (
    FRAMES_PER_DAY,
    SURFACE,
    UPPER,
    Settings,
    check_same,
    open_record,
    read_settings,
)

# The record of the quickstart: about 90 s on two cores, start-up and compilation of 15 s included
DAYS = 900
SPIN_UP_DAYS = 30
MEMBERS = 2
LEVELS_HPA = (100, 200, 300, 400, 500, 700, 850, 925)

LOCK = "lock"


def simulate(
    path: str | os.PathLike,
    *,
    days: int = DAYS,
    spin_up_days: int = SPIN_UP_DAYS,
    members: int = MEMBERS,
    seed: int = 0,
    longitudes: int = 64,
    latitudes: int = 32,
    levels_hpa: Sequence[int] = LEVELS_HPA,
    truncation: int = 21,
    layers: int = 8,
    step_minutes: int = 60,
    progress: bool = True,
) -> str:
    """Makes a Zarr v3 store of simulated weather at `path`, a folder, and returns its path.

    Args:
      days: days of all members together, four frames each.
      spin_up_days: days that each member runs before, and that are not kept.
      members: independent simulations that run at the same time, one core each.
      longitudes, latitudes: the equiangular grid, WeatherBench 2's 64 x 32 by default; its cells' centres.
      levels_hpa: pressure levels. Those under the ground or above the highest layer are extrapolated.
      truncation: largest wavenumber of the model; `layers` and `step_minutes` as it allows.

    Raises ValueError where `path` holds anything but this record, cannot be written or has too little space;
    ModuleNotFoundError without dinosaur; ChildProcessError, with the reason, where a member stops.

    >>> small = dict(members=1, spin_up_days=1, longitudes=32, latitudes=16, levels_hpa=[500, 850], truncation=10)
    >>> weathermixer.simulate("dry.zarr", days=20, **small, progress=False)
    'dry.zarr'
    """
    settings = Settings(
        days=days,
        spin_up_days=spin_up_days,
        members=members,
        seed=seed,
        longitudes=longitudes,
        latitudes=latitudes,
        levels_hpa=tuple(levels_hpa),
        truncation=truncation,
        layers=layers,
        step_minutes=step_minutes,
    )
    path = os.fspath(path).rstrip("/")
    folder = path + ".partial"
    if _is_complete(path, settings):
        return path
    if importlib.util.find_spec("dinosaur") is None:
        raise ModuleNotFoundError(
            "simulating weather needs the package dinosaur: pip install dinosaur", name="dinosaur"
        )
    try:
        os.makedirs(folder, exist_ok=True)
        lock = open(os.path.join(folder, LOCK), "w")
    except OSError as error:
        raise ValueError(f"cannot write the simulation to {path}: {error}; choose another folder") from error
    with lock:
        # of two processes that are told to make the same record, one waits and finds it made
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_complete(path, settings):
            open_record(os.path.join(folder, RECORD), settings)
            _run_members(folder, settings, progress=progress)
            os.rename(os.path.join(folder, RECORD), path)
        shutil.rmtree(folder, ignore_errors=True)
    return path


def _is_complete(path: str, settings: Settings) -> bool:
    found = read_settings(path)
    if found is not None:
        check_same(found, settings, path)
    return found is not None


def _check_space(folder: str, settings: Settings, days_done: int) -> None:
    """ValueError where the frames that are left need more than the disk has."""
    fields = len(UPPER) * len(settings.levels_hpa) + len(SURFACE)
    days_left = (settings.spin_up_days + settings.member_days) * settings.members - days_done
    needed = min(days_left, settings.days) * FRAMES_PER_DAY * fields * settings.latitudes * settings.longitudes * 4
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{folder} needs up to {needed / 1e9:.2f} GB for the simulation and has {free / 1e9:.2f} GB: free some, "
            "choose another path, or simulate fewer days"
        )


def _run_members(folder: str, settings: Settings, *, progress: bool) -> None:
    """Runs all members at once and follows them to their ends; none outlives this call."""
    done = sum(read_day(folder, member) for member in range(settings.members))
    _check_space(folder, settings, done)
    total = (settings.spin_up_days + settings.member_days) * settings.members
    messages: queue.SimpleQueue[tuple[int, str | None]] = queue.SimpleQueue()
    members: list[subprocess.Popen] = []
    try:
        for member in range(settings.members):
            members.append(_start_member(folder, member))
            threading.Thread(target=_listen, args=(member, members[member], messages), daemon=True).start()
        days = _days_done(members, messages)
        # start and compilation end with the first day: the bar's rate leaves them out
        done += sum(1 for _ in itertools.islice(days, 1))
        with Progress("simulation", total=total, done=done, unit="days") if progress else nullcontext() as bar:
            for _ in days:
                if bar is not None:
                    bar.update(1)
    finally:
        for process in members:
            process.kill()
            process.wait()
            process.stdin.close()


def _start_member(folder: str, member: int) -> subprocess.Popen:
    """Starts a member on the CPU, untouched by the caller's settings of JAX. It stops when its stdin is closed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    package = str(pathlib.Path(weathermixer.__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "weathermixer.simulation.member", folder, str(member)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=environment, text=True, errors="replace", **pipes)


def _listen(member: int, process: subprocess.Popen, messages: queue.SimpleQueue) -> None:
    with process.stdout:
        for line in process.stdout:
            messages.put((member, line.rstrip()))
    messages.put((member, None))


def _days_done(members: Sequence[subprocess.Popen], messages: queue.SimpleQueue) -> Iterator[None]:
    """Yields once for each day that a member has done, until all have ended; ChildProcessError where one fails."""
    said = [collections.deque(maxlen=20) for _ in members]
    running = len(members)
    while running:
        member, line = messages.get()
        if line is None:
            running -= 1
            status = members[member].wait()
            if status:
                reason = said[member][-1] if said[member] else "no message"
                raise ChildProcessError(
                    f"member {member} of the simulation stopped with status {status}: {reason}\n"
                    "The same call goes on where it was. What it said last:\n  " + "\n  ".join(said[member])
                )
        elif line == DAY_DONE:
            yield
        else:
            said[member].append(line)
