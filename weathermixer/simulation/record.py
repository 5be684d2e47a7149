"""The record of a simulation: its settings, and its Zarr v3 store in the form of WeatherBench 2.

    geopotential, temperature, u_component_of_wind, v_component_of_wind [time, level, latitude, longitude]
    surface_pressure [time, latitude, longitude]

All are float32 in SI units; latitudes run from south to north, cells' centres, with no row at the poles. Members lie
one after the other in time, with a gap after each.
"""

import dataclasses
import os
import shutil

import numpy as np

import weathermixer
from weathermixer.archive import storage
from weathermixer.fields.variables import VARIABLES

FIRST_TIME = np.datetime64("2000-01-01T00", "ns")
EPOCH = np.datetime64("1970-01-01T00", "ns")
HOUR = np.timedelta64(1, "h")
FRAMES_PER_DAY = 4
GAP_DAYS = 1  # between members
CHUNK_DAYS = 10  # at most: what one chunk of the store holds, and what a kill can lose
UPPER = ("geopotential", "temperature", "u_component_of_wind", "v_component_of_wind")
SURFACE = ("surface_pressure",)
MODEL_VERSION = 1  # counts changes that give another record for the same settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All that the record's bits depend on. `days` are those of all members together, after their spin-up."""

    days: int
    spin_up_days: int
    members: int
    seed: int
    longitudes: int
    latitudes: int
    levels_hpa: tuple[int, ...]
    truncation: int
    layers: int
    step_minutes: int
    version: int = MODEL_VERSION

    def __post_init__(self):
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

    @property
    def latitude(self) -> np.ndarray:
        """Latitudes of the frames in degrees, from south to north: the centres of equal intervals."""
        return (np.arange(self.latitudes) + 0.5) * 180 / self.latitudes - 90

    @property
    def longitude(self) -> np.ndarray:
        """Longitudes of the frames in degrees east."""
        return np.arange(self.longitudes) * 360 / self.longitudes

    def times(self) -> np.ndarray:
        """Times of the frames, datetime64[ns]: six-hourly, with a gap after each member."""
        frames = np.arange(self.member_days * FRAMES_PER_DAY) * (24 // FRAMES_PER_DAY)
        starts = np.arange(self.members) * (self.member_days + GAP_DAYS) * 24
        return FIRST_TIME + (starts[:, None] + frames).ravel() * HOUR


def read_settings(path: str) -> Settings | None:
    """Settings of the record at `path`, None where there is none; ValueError where there is something else."""
    document = storage.read_json(storage.open_folder(path), "zarr.json") if os.path.isdir(path) else None
    if document is None:
        if os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path)):
            raise ValueError(f"{path} exists and is no simulation: choose another path, or delete it")
        return None
    if "simulation" not in document.get("attributes", {}):
        raise ValueError(f"{path} is a Zarr store but no simulation: choose another path, or delete it")
    values = document["attributes"]["simulation"]
    return Settings(**values | {"levels_hpa": tuple(values["levels_hpa"])})


def open_field(path: str, name: str) -> storage.Array:
    """A variable of the record, [time, level, latitude, longitude] or [time, latitude, longitude]."""
    return storage.open_array(storage.join(path, name), write=True)


def check_same(found: Settings, settings: Settings, path: str) -> None:
    found, wanted = dataclasses.asdict(found), dataclasses.asdict(settings)
    different = [f"{name}={found[name]} there, {wanted[name]} wanted" for name in wanted if found[name] != wanted[name]]
    if different:
        raise ValueError(
            f"{path} holds a simulation with other settings ({'; '.join(different)}): choose another path, or delete it"
        )


def open_record(record: str, settings: Settings) -> None:
    """Writes the record's metadata and coordinates, or checks the settings of one that was begun.

    The group's zarr.json comes last, so that it tells that the rest is there.
    """
    found = read_settings(record) if os.path.exists(os.path.join(record, "zarr.json")) else None
    if found is not None:
        check_same(found, settings, record)
        return
    shutil.rmtree(record, ignore_errors=True)
    hours = (settings.times() - EPOCH) // HOUR
    cf_time = {"units": "hours since 1970-01-01", "calendar": "proleptic_gregorian", "standard_name": "time"}
    for name, values, attributes in (
        ("time", hours.astype(np.int64), cf_time),
        ("level", np.array(settings.levels_hpa, np.int64), {"units": "hPa", "standard_name": "air_pressure"}),
        ("latitude", settings.latitude, {"units": "degrees_north", "standard_name": "latitude"}),
        ("longitude", settings.longitude, {"units": "degrees_east", "standard_name": "longitude"}),
    ):
        storage.write_array(storage.join(record, name), values, dimensions=[name], attributes=attributes)
    for name in UPPER + SURFACE:
        _create_field(record, name, settings)
    attributes = {
        "title": "Dry atmosphere after Held and Suarez (1994), simulated with dinosaur",
        "Conventions": "CF-1.11",
        "software": f"weathermixer {weathermixer.__version__}",
        "simulation": dataclasses.asdict(settings),
    }
    folder = storage.open_folder(record)
    names = ("time", "level", "latitude", "longitude", *UPPER, *SURFACE)
    members = {name: storage.read_json(folder, f"{name}/zarr.json") for name in names}
    consolidated = {"kind": "inline", "must_understand": False, "metadata": members}
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes, "consolidated_metadata": consolidated}
    storage.write_json(folder, "zarr.json", group)


def _create_field(record: str, name: str, settings: Settings) -> None:
    levels = (len(settings.levels_hpa),) if name in UPPER else ()
    grid = (*levels, settings.latitudes, settings.longitudes)
    dimensions = ["time", *(["level"] if levels else []), "latitude", "longitude"]
    blosc = {"cname": "zstd", "clevel": 1, "shuffle": "bitshuffle", "typesize": 4, "blocksize": 0}
    chunk = [settings.chunk_days * FRAMES_PER_DAY, *grid]
    variable = VARIABLES[name]
    metadata = {
        "shape": [settings.days * FRAMES_PER_DAY, *grid],
        "data_type": "float32",
        "fill_value": "NaN",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "blosc", "configuration": blosc},
            {"name": "crc32c"},
        ],
        "dimension_names": dimensions,
        "attributes": {"units": variable.units, "standard_name": variable.standard_name, "short_name": variable.short},
    }
    storage.create_array(storage.join(record, name), metadata)
