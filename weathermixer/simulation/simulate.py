"""A record of simulated weather, for a first run with no download: a dry atmosphere on a grid of WeatherBench 2.

    simulate("simulation.zarr", days=600)

The record is made by independent members, each in a process of its own that is pinned to one core: XLA's thread pool
gains nothing on fields this small and makes the speed swing. Members lie one after the other in time, with a gap
between them, which training pairs never span. They run on the CPU and leave the caller's JAX alone.

What is finished is kept: a call that was stopped in any way goes on where it was and ends with the same bits, and a
complete record of the same settings is used again.
"""

import fcntl
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from typing import Any

import weathermixer
from weathermixer.archive.progress import Progress
from weathermixer.simulation.member import RECORD, read_state
from weathermixer.simulation.record import FRAMES_PER_DAY, SURFACE, UPPER, Settings, create_record, is_begun

SECONDS_BETWEEN_LOOKS = 0.2


def simulate(path: str | os.PathLike, *, progress: bool = True, **settings: Any) -> str:
    """Makes a Zarr v3 store of simulated weather at `path`, a folder, and returns its path.

    `settings` are fields of weathermixer.simulation.record.Settings: days, members, levels_hpa and the like.

    Raises ValueError where `path` holds anything but this record, cannot be written or has too little space;
    ModuleNotFoundError without dinosaur; ChildProcessError, with the reason, where a member stops.

    >>> small = dict(members=1, spin_up_days=1, longitudes=32, latitudes=16, levels_hpa=(500, 850), truncation=10)
    >>> weathermixer.simulate("dry.zarr", days=20, **small, progress=False)
    'dry.zarr'
    """
    wanted, path = Settings(**settings), pathlib.Path(path)
    folder = path.with_name(path.name + ".partial")
    if is_begun(path, wanted):
        return str(path)
    if importlib.util.find_spec("dinosaur") is None:
        raise ModuleNotFoundError(
            "simulating weather needs the package dinosaur: pip install dinosaur", name="dinosaur"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")
    except OSError as error:
        raise ValueError(f"cannot write the simulation to {path}: {error}; choose another folder") from error
    with lock:
        # of two processes that are told to make the same record, one waits and finds it made
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_begun(path, wanted):
            if not is_begun(folder / RECORD, wanted):
                create_record(folder / RECORD, wanted)
            _run_members(folder, wanted, progress=progress)
            (folder / RECORD).rename(path)
        shutil.rmtree(folder, ignore_errors=True)
    return str(path)


def _check_space(folder: pathlib.Path, settings: Settings, days_left: int) -> None:
    """ValueError where the frames that are left need more than the disk has."""
    fields = len(UPPER) * len(settings.levels_hpa) + len(SURFACE)
    needed = min(days_left, settings.days) * FRAMES_PER_DAY * fields * settings.latitudes * settings.longitudes * 4
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{folder} needs up to {needed / 1e9:.2f} GB for the simulation and has {free / 1e9:.2f} GB: free some, "
            "choose another path, or simulate fewer days"
        )


def _run_members(folder: pathlib.Path, settings: Settings, *, progress: bool) -> None:
    """Runs all members at once, until the last has ended or one fails; none outlives this call."""

    def days_done() -> int:
        return sum(read_state(folder, member)[0] for member in range(settings.members))

    total, done = (settings.spin_up_days + settings.member_days) * settings.members, days_done()
    _check_space(folder, settings, total - done)
    members: list[subprocess.Popen] = []
    try:
        members += (_start_member(folder, member) for member in range(settings.members))
        with Progress("simulation", total=total, done=done, unit="days") if progress else nullcontext() as bar:
            running = True
            while running:
                time.sleep(SECONDS_BETWEEN_LOOKS)
                statuses = [process.poll() for process in members]
                running = None in statuses
                for member, status in enumerate(statuses):
                    if status:
                        raise ChildProcessError(_describe_failure(folder, member, status))
                before, done = done, days_done()
                if bar is not None and done > before:
                    bar.update(done - before)
    finally:
        for process in members:
            process.kill()
            process.wait()
            process.stdin.close()


def _start_member(folder: pathlib.Path, member: int) -> subprocess.Popen:
    """Starts a member on the CPU, untouched by the caller's settings of JAX. It stops when its stdin is closed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    package = str(pathlib.Path(weathermixer.__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    command = [sys.executable, "-m", "weathermixer.simulation.member", str(folder), str(member)]
    with open(_said(folder, member), "w") as said:
        return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=said, stderr=said)


def _said(folder: pathlib.Path, member: int) -> pathlib.Path:
    return folder / f"member-{member}.txt"


def _describe_failure(folder: pathlib.Path, member: int, status: int) -> str:
    lines = _said(folder, member).read_text(errors="replace").splitlines()[-20:] or ["no message"]
    return (
        f"member {member} of the simulation stopped with status {status}: {lines[-1]}\n"
        "The same call goes on where it was. What it said last:\n  " + "\n  ".join(lines)
    )
