"""A record of simulated weather, for a first run with no download: a dry atmosphere on a grid of WeatherBench 2.

    simulate("simulation.zarr", days=600)

The record is made by independent members, each in a process of its own that is pinned to one core: XLA's thread pool
gains nothing on fields this small and makes the speed swing. Members lie one after the other in time, with a gap
between them, which training pairs never span. They run on the CPU and leave the caller's JAX alone.

It takes a minute or two: a call that was stopped leaves no record, and the next begins anew. A complete record of the
same settings is used again.
"""

import contextlib
import dataclasses
import fcntl
import itertools
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

import weathermixer
from weathermixer.archive.progress import make_progress
from weathermixer.fields.variables import VARIABLES

FIRST_TIME = np.datetime64("2000-01-01T00", "ns")
NORTH = {"units": "degrees_north", "standard_name": "latitude"}
EAST = {"units": "degrees_east", "standard_name": "longitude"}
FRAMES_PER_DAY = 4
GAP_DAYS = 1  # between members
CHUNK_DAYS = 10  # of one chunk of the store
FIELDS = ("geopotential", "temperature", "u_component_of_wind", "v_component_of_wind", "surface_pressure")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All that the record's bits depend on; the defaults are the quickstart's, 90 s on two cores.

    Raises ValueError for numbers that cannot be.
    """

    days: int = 900  # of all members together, four frames each
    spin_up_days: int = 30  # that each member runs before, and that are not kept
    members: int = 2  # independent simulations that run at the same time, one core each
    seed: int = 0
    longitudes: int = 64  # of the equiangular grid, its cells' centres: WeatherBench 2's 64 x 32
    latitudes: int = 32
    # in hPa; levels under the ground or above the highest layer are extrapolated
    levels_hpa: Sequence[int] = (100, 200, 300, 400, 500, 700, 850, 925)
    truncation: int = 21  # largest wavenumber of the model
    layers: int = 8  # and step_minutes as the truncation allows
    step_minutes: int = 60
    version: int = 1  # counts changes that give another record for the same settings

    def __post_init__(self):
        object.__setattr__(self, "levels_hpa", tuple(self.levels_hpa))  # as it comes from a list, or from JSON
        for name, value in vars(self).items():
            if name != "levels_hpa" and value < (least := 0 if name in ("spin_up_days", "seed") else 1):
                raise ValueError(f"simulation: {name}={value} must be at least {least}")
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
            with make_progress("simulation", total=wanted.days, unit="days", show=progress) as bar:
                fields = _run_members(folder, wanted, bar)
            _write_record(folder / "record", wanted, fields)
            (folder / "record").rename(path)
        shutil.rmtree(folder, ignore_errors=True)
    return str(path)


def _run_members(folder: pathlib.Path, settings: Settings, bar: tqdm) -> dict[str, Float[np.ndarray, "time ..."]]:
    """Runs all members at once, and puts their days into files in `folder`; no member outlives this call."""
    shape = settings.days * FRAMES_PER_DAY, len(settings.levels_hpa), settings.latitudes, settings.longitudes
    shapes = {name: shape[:1] + shape[2:] if name == "surface_pressure" else shape for name in FIELDS}
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / name, "wb")) for name in FIELDS}
        members = [_start_member(settings, member, stack) for member in range(settings.members)]
        for day, (number, (member, said)) in itertools.product(range(settings.member_days), enumerate(members)):
            for name, file in files.items():
                size = 4 * FRAMES_PER_DAY * math.prod(shapes[name][1:])
                values = member.stdout.read(size)
                if len(values) < size:
                    status = member.wait()
                    said.seek(0)
                    lines = said.read().decode(errors="replace").splitlines()[-20:] or ["no message"]
                    raise ChildProcessError(
                        f"member {number} of the simulation stopped with status {status}: {lines[-1]}\n"
                        "What it said last:\n  " + "\n  ".join(lines)
                    )
                file.seek((number * settings.member_days + day) * size)
                file.write(values)
            bar.update(1)
    return {name: np.memmap(folder / name, np.float32, "r", shape=shape) for name, shape in shapes.items()}


def _start_member(settings: Settings, member: int, stack: contextlib.ExitStack) -> tuple[subprocess.Popen, BinaryIO]:
    """Starts a member on the CPU, untouched by the caller's settings of JAX: (process, what it says), until the end."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    package = str(pathlib.Path(weathermixer.__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    what = json.dumps(dataclasses.asdict(settings))
    command = [sys.executable, "-m", "weathermixer.simulation.atmosphere", what, str(member)]
    said = stack.enter_context(tempfile.TemporaryFile())
    process = stack.enter_context(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=said))
    stack.callback(process.kill)
    if hasattr(os, "sched_setaffinity"):  # Linux: every member on another core; elsewhere XLA's flag alone has to do
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(process.pid, {cores[member % len(cores)]})  # before it has threads
    return process, said


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


def _write_record(path: pathlib.Path, settings: Settings, fields: Mapping[str, Float[np.ndarray, "time ..."]]) -> None:
    """Writes fields as a Zarr store at `path`, in the place of what was there."""
    import xarray as xr  # here, as every run asks for Settings

    about = {
        "title": "Dry atmosphere after Held and Suarez (1994), simulated with dinosaur",
        "Conventions": "CF-1.11",
        "software": f"weathermixer {weathermixer.__version__}",
        "simulation": dataclasses.asdict(settings),
    }
    frames = np.arange(settings.member_days * FRAMES_PER_DAY) * (24 // FRAMES_PER_DAY)
    starts = np.arange(settings.members)[:, None] * (settings.member_days + GAP_DAYS) * 24
    times = FIRST_TIME + (starts + frames).ravel() * np.timedelta64(1, "h")
    axes = {
        "time": ("time", times, {"standard_name": "time"}),
        "level": ("level", np.array(settings.levels_hpa), {"units": "hPa", "standard_name": "air_pressure"}),
        "latitude": ("latitude", (np.arange(settings.latitudes) + 0.5) * 180 / settings.latitudes - 90, NORTH),
        "longitude": ("longitude", np.arange(settings.longitudes) * 360 / settings.longitudes, EAST),
    }
    record, encoding = xr.Dataset(coords=axes, attrs=about), {"time": {"units": "hours since 1970-01-01"}}
    for name, values in fields.items():
        variable, dimensions = VARIABLES[name], [axis for axis in axes if axis != "level" or values.ndim == 4]
        about = {"units": variable.units, "standard_name": variable.standard_name, "short_name": variable.short}
        record[name] = (dimensions, values, about)
        encoding[name] = {"chunks": (CHUNK_DAYS * FRAMES_PER_DAY, *values.shape[1:])}
    with warnings.catch_warnings():  # xarray warns where it is not consolidated, zarr where it is
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        record.to_zarr(path, mode="w", zarr_format=3, consolidated=True, encoding=encoding)
