"""The archive: frames packed in one Zarr v3 array, cut so that a process of any mesh reads just its own bytes.

    fields [time, channel, latitude, longitude]     stored * scale[channel] + offset[channel] = SI units
      shard        several times, all channels, the whole globe: one file
      inner chunk  one time, a channel group, a latitude band: what is read and decoded at once, with its own checksum

Coordinates, names, packing, statistics and static fields lie beside it; xarray opens the group. An archive is readable
once it is published: renamed into place on a file system, marked complete in an object store.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorstore as ts
from jaxtyping import Float, Int

from weathermixer.archive import storage
from weathermixer.fields.grid import Grid
from weathermixer.fields.variables import Channel

FORMAT = "weathermixer-archive"
CLIMATOLOGY = "climatology"  # the group of the archive's own climatology, where it has one
FORMAT_VERSION = 2
EPOCH = np.datetime64("1970-01-01T00", "ns")
HOUR = np.timedelta64(1, "h")


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Per channel, in physical units: moments, range, count of missing, and the standard deviation of x(t + h) - x(t).

    h is the attribute tendency_hours: 6, or a step where 6 h are no whole steps.
    """

    mean: Float[np.ndarray, " channel"]
    std: Float[np.ndarray, " channel"]
    tendency_std: Float[np.ndarray, " channel"]
    minimum: Float[np.ndarray, " channel"]
    maximum: Float[np.ndarray, " channel"]
    missing: Int[np.ndarray, " channel"]


STATISTICS = tuple(field.name for field in dataclasses.fields(Statistics))
NUMERIC = ("time", "latitude", "longitude", "scale", "offset", "static", *STATISTICS)


@dataclasses.dataclass(frozen=True, eq=False)
class Archive:
    """An open archive: `store` reads lazily, everything else is in memory. times [time] are datetime64[ns].

    >>> archive = weathermixer.open_archive("dry.archive")
    >>> (t850,) = archive.channel_indices(["temperature_850"])
    >>> field = archive.store[0, t850].read().result() * archive.scale[t850] + archive.offset[t850]
    >>> field.shape, f"{field[7:9].mean():.0f} K"  # in the tropics
    ((16, 32), '2... K')
    """

    path: str
    store: ts.TensorStore
    times: np.ndarray
    grid: Grid
    channels: tuple[Channel, ...]
    scale: Float[np.ndarray, " channel"]
    offset: Float[np.ndarray, " channel"]
    statistics: Statistics
    static: dict[str, Float[np.ndarray, "lat lon"]]
    attributes: dict[str, Any]

    @property
    def step_hours(self) -> int:
        return self.attributes["step_hours"]

    def channel_indices(self, names: Sequence[str]) -> Int[np.ndarray, " n"]:
        """Positions of channels in the archive; ValueError with what there is where one is absent."""
        position = {channel.name: index for index, channel in enumerate(self.channels)}
        absent = [name for name in names if name not in position]
        if absent:
            raise ValueError(f"{self.path} has no channels {absent}; it has {list(position)}")
        return np.array([position[name] for name in names], np.int64)


def open_archive(path: str | os.PathLike) -> Archive:
    """Opens a published archive for reading, in any store.

    Raises ValueError where there is no archive, where it is incomplete, or written in another format version.

    >>> archive = weathermixer.open_archive("dry.archive")
    >>> archive.grid.shape, [channel.short for channel in archive.channels]
    ((16, 32), ['t850', 't500', 'z850', 'z500'])
    """
    path = os.fspath(path)
    attributes = _read_attributes(path)
    numeric = {name: storage.read_array(storage.join(path, name)) for name in NUMERIC}
    # no memory map: the kernel reads around each of its page faults, and a band cost 3.8 times its bytes
    store = storage.open_array(storage.join(path, "fields"))
    names = storage.read_text_array(storage.join(path, "channel"))
    static_names = storage.read_text_array(storage.join(path, "static_channel"))
    values = {name: future.result() for name, future in numeric.items()}
    return Archive(
        path=path,
        store=store,
        times=EPOCH + values["time"] * HOUR,
        grid=Grid(values["latitude"], values["longitude"]),
        channels=tuple(
            # the name alone does not tell: soil_temperature_level_1 is not on 1 hPa
            Channel(name if level is None else name.removesuffix(f"_{level}"), level, units)
            for name, level, units in zip(names, attributes["levels_hpa"], attributes["units"], strict=True)
        ),
        scale=values["scale"],
        offset=values["offset"],
        statistics=Statistics(**{name: values[name] for name in STATISTICS}),
        static=dict(zip(static_names, values["static"], strict=True)),
        attributes=attributes,
    )


def is_archive(path: str | os.PathLike, *, complete: bool = False) -> bool:
    """Whether an archive lies at a path, complete or not: tells it from the sources that one is made from."""
    attributes = (storage.read_json(storage.open_folder(path), "zarr.json") or {}).get("attributes", {})
    return attributes.get("format") == FORMAT and (not complete or attributes["complete"])


def _read_attributes(path: str) -> dict[str, Any]:
    document = storage.read_json(storage.open_folder(path), "zarr.json")
    begun = document is None and storage.is_local(path) and os.path.isdir(path + ".partial")
    if document is None and not begun:
        raise ValueError(f"there is no archive at {path}: it has no zarr.json")
    attributes = {} if begun else document.get("attributes", {})
    if begun or not attributes.get("complete", True):
        raise ValueError(f"{path} is incomplete: it was not published; run prepare again to finish it")
    if attributes.get("format") != FORMAT:
        raise ValueError(f"{path} is a Zarr store but not a WeatherMixer archive: make one from it with prepare")
    if attributes["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {attributes['format_version']}, this software reads {FORMAT_VERSION}: "
            "make it again with prepare"
        )
    return attributes
