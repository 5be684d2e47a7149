"""The archive: frames packed in one Zarr v3 array, cut so that a process of any mesh reads just its own bytes.

    fields [time, channel, latitude, longitude]     stored * scale[channel] + offset[channel] = SI units
      shard        several times, all channels, the whole globe: one file
      inner chunk  one time, a channel group, a latitude band: what is read and decoded at once, with its own checksum

Coordinates, names, packing, statistics and static fields lie beside it; xarray opens the group. An archive is readable
once it is published: renamed into place on a file system, marked complete in an object store.
"""

import dataclasses
import datetime
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorstore as ts
from jaxtyping import Float, Int

import weathermixer
from weathermixer.data import storage
from weathermixer.data.layout import chunk_shape, fields_metadata
from weathermixer.grid import Grid
from weathermixer.variables import Channel, parse_channel

FORMAT = "weathermixer-archive"
FORMAT_VERSION = 1
EPOCH = np.datetime64("1970-01-01T00", "ns")
HOUR = np.timedelta64(1, "h")
_TIME = {"units": "hours since 1970-01-01", "calendar": "proleptic_gregorian", "standard_name": "time"}
_LATITUDE = {"units": "degrees_north", "standard_name": "latitude"}
_LONGITUDE = {"units": "degrees_east", "standard_name": "longitude"}


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Per channel, in physical units: moments, the standard deviation of x(t + 6 h) - x(t), range, count of missing."""

    mean: Float[np.ndarray, " channel"]
    std: Float[np.ndarray, " channel"]
    tendency_std: Float[np.ndarray, " channel"]
    minimum: Float[np.ndarray, " channel"]
    maximum: Float[np.ndarray, " channel"]
    missing: Int[np.ndarray, " channel"]


@dataclasses.dataclass(frozen=True, eq=False)
class Archive:
    """An open archive: `store` reads lazily, everything else is in memory. times [time] are datetime64[ns]."""

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


def open_archive(path: str | os.PathLike, *, context: ts.Context | None = None) -> Archive:
    """Opens a published archive for reading, in any store.

    Raises ValueError where there is no archive, where it is incomplete, or written in another format version.
    """
    path = os.fspath(path)
    # no cache: what can be shared is shared by reading it together, and host memory stays within the loader's bound.
    # No memory map either: the kernel reads around each of its page faults, and a band cost 3.8 times its bytes
    context = context or ts.Context({"cache_pool": {"total_bytes_limit": 0}})
    attributes = _read_attributes(path, context)
    numeric = {name: storage.read_array(storage.join(path, name), context=context) for name in _NUMERIC}
    spec = {"driver": "zarr3", "kvstore": storage.kvstore_spec(storage.join(path, "fields"))}
    # an absent chunk is an error here, never a frame of fill values
    store = ts.open(spec | {"fill_missing_data_reads": False}, read=True, context=context).result()
    names = storage.read_text_array(storage.join(path, "channel"), context=context)
    static_names = storage.read_text_array(storage.join(path, "static_channel"), context=context)
    values = {name: future.result() for name, future in numeric.items()}
    return Archive(
        path=path,
        store=store,
        times=EPOCH + values["time"] * HOUR,
        grid=Grid(values["latitude"], values["longitude"]),
        channels=tuple(parse_channel(name) for name in names),
        scale=values["scale"],
        offset=values["offset"],
        statistics=Statistics(**{name: values[name] for name in _STATISTICS}),
        static=dict(zip(static_names, values["static"], strict=True)),
        attributes=attributes,
    )


def _read_attributes(path: str, context: ts.Context) -> dict[str, Any]:
    document = storage.read_json(storage.open_folder(path, context=context), "zarr.json")
    if document is None:
        if storage.is_local(path) and os.path.isdir(path + ".partial"):
            raise ValueError(f"{path} is incomplete: {path}.partial was not published; run prepare again to finish it")
        raise ValueError(f"there is no archive at {path}: it has no zarr.json")
    attributes = document.get("attributes", {})
    if attributes.get("format") != FORMAT:
        raise ValueError(f"{path} is a Zarr store but not a WeatherMixer archive: make one from it with prepare")
    if attributes["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {attributes['format_version']}, this software reads {FORMAT_VERSION}"
        )
    if not attributes["complete"]:
        raise ValueError(f"{path} is incomplete: it was not published; run prepare again to finish it")
    return attributes


def create_archive(
    path: str | os.PathLike,
    *,
    times: np.ndarray,
    grid: Grid,
    channels: Sequence[Channel],
    static: Mapping[str, Float[np.ndarray, "lat lon"]],
    scale: Float[np.ndarray, " n"],
    offset: Float[np.ndarray, " n"],
    dtype: str = "float16",
    domain: int = 1,
    tensor: int = 1,
    times_per_shard: int,
    attributes: Mapping[str, Any],
    compressor: str = "none",
) -> ts.TensorStore:
    """Writes an archive's metadata and returns its `fields`, to be filled whole shards at a time and published.

    Idempotent: called again with the same layout it goes on with what is there. `attributes` needs step_hours.
    Every chunk has a checksum that finds a flipped bit. compressor "none" is read at the rate of a plain copy; "zstd"
    takes 2/3 of the bytes and "lz4" 4/5, which slow and remote stores are read faster from. Raises ValueError where the
    archive exists, the layout differs from what is there, or sizes do not fit.
    """
    path = os.fspath(path)
    _check(path, times, grid, channels, static, scale, offset, dtype, domain, tensor, times_per_shard, attributes)
    shape = (len(times), len(channels), *grid.shape)
    itemsize = np.dtype(dtype).itemsize
    chunk = chunk_shape(len(channels), len(static), *grid.shape, itemsize=itemsize, domain=domain, tensor=tensor)
    metadata = fields_metadata(shape, chunk, dtype, times_per_shard, compressor=compressor)
    target = working_path(path)
    store = _create_fields(target, metadata)
    for name, values, dimensions, extra in (
        ("time", (times - EPOCH) // HOUR, ["time"], _TIME),
        ("latitude", np.asarray(grid.latitude, np.float64), ["latitude"], _LATITUDE),
        ("longitude", np.asarray(grid.longitude, np.float64), ["longitude"], _LONGITUDE),
        ("scale", np.asarray(scale, np.float64), ["channel"], {}),
        ("offset", np.asarray(offset, np.float64), ["channel"], {}),
        ("static", _stack(static, grid.shape), ["static_channel", "latitude", "longitude"], {}),
    ):
        storage.write_array(storage.join(target, name), values, dimensions=dimensions, attributes=extra)
    storage.write_text_array(storage.join(target, "channel"), [c.name for c in channels], dimension="channel")
    storage.write_text_array(storage.join(target, "static_channel"), list(static), dimension="static_channel")
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "complete": False,
        "software": f"weathermixer {weathermixer.__version__}",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "domain": domain,
        "tensor": tensor,
        "compressor": compressor,
        **attributes,
    }
    _write_group(target, document, {})
    return store


def write_statistics(path: str | os.PathLike, statistics: Statistics) -> None:
    """Writes the statistics of an archive that is being made."""
    target = working_path(os.fspath(path))
    for name in _STATISTICS:
        values = np.asarray(getattr(statistics, name), np.int64 if name == "missing" else np.float64)
        storage.write_array(storage.join(target, name), values, dimensions=["channel"])


def publish(path: str | os.PathLike, *, attributes: Mapping[str, Any] = {}, members: Sequence[str] = ()) -> None:
    """Makes an archive readable, all at once: adds `attributes`, marks it complete and renames it into place.

    `members` are arrays and groups added to those of `create_archive`. Raises ValueError where arrays are absent,
    statistics for one.
    """
    path = os.fspath(path)
    target = working_path(path)
    folder = storage.open_folder(target)
    document = storage.read_json(folder, "zarr.json")
    if document is None:
        raise ValueError(f"nothing to publish at {target}: create_archive comes first")
    metadata = {name: storage.read_json(folder, f"{name}/zarr.json") for name in (*_MEMBERS, *members)}
    absent = [name for name, found in metadata.items() if found is None]
    if absent:
        raise ValueError(f"{target} cannot be published: arrays {absent} are absent")
    _write_group(target, document["attributes"] | dict(attributes) | {"complete": True}, metadata)
    if target != path:
        os.rename(target, path)


def is_published(path: str | os.PathLike) -> bool:
    """Whether there is a complete archive at a path."""
    document = storage.read_json(storage.open_folder(path), "zarr.json")
    return document is not None and bool(document["attributes"].get("complete"))


def working_path(path: str) -> str:
    """Where an archive lies while it is made: beside its place on a file system, in its place in an object store."""
    return path.rstrip("/") + ".partial" if storage.is_local(path) else path


def _create_fields(target: str, metadata: dict[str, Any]) -> ts.TensorStore:
    spec = {
        "driver": "zarr3",
        "kvstore": storage.kvstore_spec(storage.join(target, "fields")),
        "metadata": metadata,
        # zeros are data: a chunk that is absent is always an error when read
        "store_data_equal_to_fill_value": True,
        "fill_missing_data_reads": False,
    }
    try:
        return ts.open(spec, create=True, open=True).result()
    except ValueError as error:
        raise ValueError(f"{target} holds an archive of another layout; delete it to start afresh. {error}") from None


def _check(path, times, grid, channels, static, scale, offset, dtype, domain, tensor, times_per_shard, attributes):
    there = storage.read_json(storage.open_folder(path), "zarr.json")
    if there is not None and (storage.is_local(path) or there.get("attributes", {}).get("complete", True)):
        raise ValueError(f"{path} exists: delete it or choose another name")
    if dtype not in ("float16", "int16", "float32"):
        raise ValueError(f"dtype={dtype!r} must be float16, int16 or float32")
    if not len(times) or np.any(times[1:] <= times[:-1]):
        raise ValueError("an archive's times must ascend, and there must be at least one")
    if np.any(times != EPOCH + (times - EPOCH) // HOUR * HOUR):
        raise ValueError("an archive's times must be whole hours")
    if domain < 1 or tensor < 1 or times_per_shard < 1:
        raise ValueError(f"domain={domain}, tensor={tensor}, times_per_shard={times_per_shard} must be at least 1")
    if grid.shape[0] % domain:
        raise ValueError(f"latitude={grid.shape[0]} is not divisible by domain={domain}")
    if len(scale) != len(channels) or len(offset) != len(channels):
        raise ValueError(f"scale={len(scale)} and offset={len(offset)} values for {len(channels)} channels")
    if not np.all(np.isfinite(scale)) or not np.all(np.isfinite(offset)) or np.any(np.asarray(scale) <= 0):
        raise ValueError("scale must be positive, scale and offset finite")
    for name, field in static.items():
        if np.shape(field) != grid.shape:
            raise ValueError(f"static field {name} has shape {np.shape(field)}, the grid {grid.shape}")
    if "step_hours" not in attributes:
        raise ValueError("attributes must name step_hours, the hours between times")


def _stack(static: Mapping[str, np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    return np.stack([*static.values()]).astype(np.float32) if static else np.zeros((0, *shape), np.float32)


def _write_group(target: str, attributes: Mapping[str, Any], members: Mapping[str, Any]) -> None:
    """Writes the group's zarr.json, with its members' metadata inside: readers of remote stores need not list."""
    document: dict[str, Any] = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    if members:
        document["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": dict(members)}
    storage.write_json(storage.open_folder(target), "zarr.json", document)


_STATISTICS = tuple(field.name for field in dataclasses.fields(Statistics))
_NUMERIC = ("time", "latitude", "longitude", "scale", "offset", "static", *_STATISTICS)
_MEMBERS = ("fields", "channel", "static_channel", *_NUMERIC)
