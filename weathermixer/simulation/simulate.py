"""A record of simulated weather, for a first run with no download: a dry atmosphere on a grid of WeatherBench 2.

    simulate("simulation.zarr", days=600)

The record is made by independent members, each in a process of its own that is pinned to one core: XLA's thread pool
gains nothing on fields this small and makes the speed swing. Members lie one after the other in time, with a gap
between them, which training pairs never span. They run on the CPU and leave the caller's JAX alone.

It takes a minute or two: a call that was stopped leaves no record, and the next begins anew. A complete record of the
same settings is used again.
"""

import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

import weathermixer
from weathermixer.archive.progress import make_progress
from weathermixer.fields.variables import VARIABLES

FIRST_TIME = np.datetime64("2000-01-01T00", "ns")
NORTH = {"units": "degrees_north", "standard_name": "latitude"}
EAST = {"units": "degrees_east", "standard_name": "longitude"}
SECONDS_BETWEEN_LOOKS = 0.2
FRAMES_PER_DAY = 4
GAP_DAYS = 1  # between members
CHUNK_DAYS = 10  # at most, of one chunk of the store
FIELDS = ("geopotential", "temperature", "u_component_of_wind", "v_component_of_wind", "surface_pressure")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All that the record's bits depend on; the defaults are the quickstart's, 90 s on two cores.

    Attributes:
      days: days of all members together, four frames each.
      spin_up_days: days that each member runs before, and that are not kept.
      members: independent simulations that run at the same time, one core each.
      longitudes, latitudes: the equiangular grid, WeatherBench 2's 64 x 32 by default; its cells' centres.
      levels_hpa: pressure levels. Those under the ground or above the highest layer are extrapolated.
      truncation: largest wavenumber of the model; `layers` and `step_minutes` as it allows.
      version: counts changes that give another record for the same settings.

    Raises ValueError for numbers that cannot be.
    """

    days: int = 900
    spin_up_days: int = 30
    members: int = 2
    seed: int = 0
    longitudes: int = 64
    latitudes: int = 32
    levels_hpa: Sequence[int] = (100, 200, 300, 400, 500, 700, 850, 925)
    truncation: int = 21
    layers: int = 8
    step_minutes: int = 60
    version: int = 1

    def __post_init__(self):
        object.__setattr__(self, "levels_hpa", tuple(self.levels_hpa))  # as it comes from a list, or from JSON
        for name in ("days", "members", "longitudes", "latitudes", "truncation", "layers", "step_minutes"):
            if getattr(self, name) < 1:
                raise ValueError(f"simulation: {name}={getattr(self, name)} must be at least 1")
        if self.spin_up_days < 0 or self.seed < 0:
            raise ValueError(f"simulation: spin_up_days={self.spin_up_days} and seed={self.seed} must not be negative")
        if self.days % self.members:
            raise ValueError(f"simulation: days={self.days} is not divisible by members={self.members}")
        if 24 * 60 // FRAMES_PER_DAY % self.step_minutes:
            raise ValueError(
                f"simulation: step_minutes={self.step_minutes} does not divide the six hours between frames"
            )
        if not self.levels_hpa or min(self.levels_hpa) <= 0 or len(set(self.levels_hpa)) < len(self.levels_hpa):
            raise ValueError(f"simulation: levels_hpa={self.levels_hpa} must be distinct and positive")

    @property
    def member_days(self) -> int:
        """Days that a member adds to the record, after its spin-up."""
        return self.days // self.members

    @property
    def chunk_days(self) -> int:
        """Days in one chunk: no chunk belongs to two members."""
        return max(days for days in range(1, CHUNK_DAYS + 1) if self.member_days % days == 0)

    def times(self) -> np.ndarray:
        """Times of the frames, datetime64[ns]: six-hourly, with a gap after each member."""
        frames = np.arange(self.member_days * FRAMES_PER_DAY) * (24 // FRAMES_PER_DAY)
        starts = np.arange(self.members) * (self.member_days + GAP_DAYS) * 24
        return FIRST_TIME + (starts[:, None] + frames).ravel() * np.timedelta64(1, "h")


def simulate(path: str | os.PathLike, *, progress: bool = True, **settings: Any) -> str:
    """Makes a Zarr v3 store of simulated weather at `path`, a folder, and returns its path.

    `settings` are fields of weathermixer.simulation.simulate.Settings: days, members, levels_hpa and the like.

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
            with make_progress("simulation", total=wanted.days, unit="days", show=progress) as bar:
                _run_members(folder, wanted, bar, lock=lock.fileno())
            (folder / "record").rename(path)
        shutil.rmtree(folder, ignore_errors=True)
    return str(path)


def _run_members(folder: pathlib.Path, settings: Settings, bar: tqdm, *, lock: int) -> None:
    """Runs all members at once, until the last has ended or one fails; none outlives this call."""
    import zarr

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


def is_made(path: pathlib.Path, settings: Settings) -> bool:
    """Whether the record of these settings is at `path`; ValueError where something else is."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return False
    try:
        there = Settings(**json.loads((path / "zarr.json").read_text())["attributes"]["simulation"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} exists and is no simulation: choose another path, or delete it") from error
    there, wanted = dataclasses.asdict(there), dataclasses.asdict(settings)
    different = [f"{name}={there[name]} there, {wanted[name]} wanted" for name in wanted if there[name] != wanted[name]]
    if different:
        raise ValueError(
            f"{path} holds a simulation with other settings ({'; '.join(different)}): choose another path, or delete it"
        )
    return True


def create_record(path: pathlib.Path, settings: Settings) -> None:
    """Writes a record's metadata and coordinates at `path`, in the place of what was there."""
    import xarray as xr  # here, as every run asks for Settings
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    about = {
        "title": "Dry atmosphere after Held and Suarez (1994), simulated with dinosaur",
        "Conventions": "CF-1.11",
        "software": f"weathermixer {weathermixer.__version__}",
        "simulation": dataclasses.asdict(settings),
    }
    axes = {
        "time": ("time", settings.times(), {"standard_name": "time"}),
        "level": ("level", np.array(settings.levels_hpa), {"units": "hPa", "standard_name": "air_pressure"}),
        "latitude": ("latitude", (np.arange(settings.latitudes) + 0.5) * 180 / settings.latitudes - 90, NORTH),
        "longitude": ("longitude", np.arange(settings.longitudes) * 360 / settings.longitudes, EAST),
    }
    empty = xr.Dataset(coords=axes, attrs=about)
    empty.time.encoding["units"] = "hours since 1970-01-01"
    empty.to_zarr(path, mode="w", zarr_format=3, consolidated=False)
    group = zarr.open_group(path)
    for name in FIELDS:
        dimensions = [axis for axis in axes if axis != "level" or name != "surface_pressure"]
        variable, grid = VARIABLES[name], [empty.sizes[axis] for axis in dimensions[1:]]
        group.create_array(
            name,
            shape=(settings.days * FRAMES_PER_DAY, *grid),
            chunks=(settings.chunk_days * FRAMES_PER_DAY, *grid),
            dtype="float32",
            fill_value=np.nan,
            compressors=[BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"), Crc32cCodec()],
            dimension_names=dimensions,
            attributes={"units": variable.units, "standard_name": variable.standard_name, "short_name": variable.short},
        )
    with warnings.catch_warnings():  # xarray warns where it is not consolidated, zarr where it is
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(path)
