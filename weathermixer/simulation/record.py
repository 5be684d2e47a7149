"""The record of a simulation: its settings, and its Zarr v3 store in the form of WeatherBench 2.

    geopotential, temperature, u_component_of_wind, v_component_of_wind [time, level, latitude, longitude]
    surface_pressure [time, latitude, longitude]

All are float32 in SI units; latitudes run from south to north, cells' centres, with no row at the poles. Members lie
one after the other in time, with a gap after each.
"""

import dataclasses
import json
import pathlib
import warnings
from collections.abc import Sequence

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

import weathermixer
from weathermixer.fields.variables import VARIABLES

FIRST_TIME = np.datetime64("2000-01-01T00", "ns")
NORTH = {"units": "degrees_north", "standard_name": "latitude"}
EAST = {"units": "degrees_east", "standard_name": "longitude"}
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
