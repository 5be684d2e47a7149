"""A record of simulated weather, for a first run with no download: a dry atmosphere on a grid of WeatherBench 2.

    simulate("simulation.zarr", days=600)

The record is made by independent members, each in a process of its own that is pinned to one core: XLA's thread pool
gains nothing on fields this small and makes the speed swing. Members lie one after the other in time, with a gap
between them, which training pairs never span. They run on the CPU and leave the caller's JAX alone.

It takes a minute or two: a call that was stopped leaves no record, and the next begins anew. A complete record of the
same settings is used again.
"""

import contextlib
import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any

import zarr

import weathermixer
from weathermixer.archive.progress import Progress
from weathermixer.simulation.record import FIELDS, Settings, create_record, is_made

SECONDS_BETWEEN_LOOKS = 0.2


def simulate(path: str | os.PathLike, *, progress: bool = True, **settings: Any) -> str:
    """Makes a Zarr v3 store of simulated weather at `path`, a folder, and returns its path.

    `settings` are fields of weathermixer.simulation.record.Settings: days, members, levels_hpa and the like.

    Raises ValueError where `path` holds anything but this record or cannot be written; ChildProcessError, with the
    reason, where a member stops.

    >>> small = dict(members=1, spin_up_days=1, longitudes=32, latitudes=16, levels_hpa=(500, 850), truncation=10)
    >>> weathermixer.simulate("dry.zarr", days=20, **small, progress=False)
    'dry.zarr'
    """
    wanted, path = Settings(**settings), pathlib.Path(path)
    folder = path.with_name(path.name + ".partial")
    if is_made(path, wanted):
        return str(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")
    except OSError as error:
        raise ValueError(f"cannot write the simulation to {path}: {error}; choose another folder") from error
    with lock:
        # of two processes that are told to make the same record, one waits and finds it made
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_made(path, wanted):
            create_record(folder / "record", wanted)
            with (
                Progress("simulation", total=wanted.days, unit="days") if progress else contextlib.nullcontext() as bar
            ):
                _run_members(folder, wanted, bar, lock=lock.fileno())
            (folder / "record").rename(path)
        shutil.rmtree(folder, ignore_errors=True)
    return str(path)


def _run_members(folder: pathlib.Path, settings: Settings, bar: Progress | None, *, lock: int) -> None:
    """Runs all members at once, until the last has ended or one fails; none outlives this call."""
    last = zarr.open_array(folder / "record" / FIELDS[-1])  # its chunks tell how far members are
    members: list[subprocess.Popen] = []
    try:
        members += (_start_member(folder, member, lock) for member in range(settings.members))
        done, running = 0, True
        while running:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            statuses = [process.poll() for process in members]
            running = None in statuses
            for member, status in enumerate(statuses):
                if status:
                    said = _said(folder, member).read_text(errors="replace").splitlines()[-20:] or ["no message"]
                    raise ChildProcessError(
                        f"member {member} of the simulation stopped with status {status}: {said[-1]}\n"
                        "What it said last:\n  " + "\n  ".join(said)
                    )
            before, done = done, last.nchunks_initialized * settings.chunk_days
            if bar is not None and done > before:
                bar.update(done - before)
    finally:
        for process in members:
            process.kill()
            process.wait()


def _start_member(folder: pathlib.Path, member: int, lock: int) -> subprocess.Popen:
    """Starts a member on the CPU, untouched by the caller's settings of JAX.

    It holds the lock too: where this process is killed, the next one waits until its members have ended.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    package = str(pathlib.Path(weathermixer.__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    command = [sys.executable, "-m", "weathermixer.simulation.member", str(folder / "record"), str(member)]
    with open(_said(folder, member), "w") as said:
        return subprocess.Popen(command, env=environment, pass_fds=[lock], stdout=said, stderr=said)


def _said(folder: pathlib.Path, member: int) -> pathlib.Path:
    return folder / f"member-{member}.txt"
