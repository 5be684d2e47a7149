"""From stored values to the model's input and back, on the device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Num

from weathermixer.archive.archive import Archive
from weathermixer.fields.grid import Grid
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel.mesh import CutArray, check_divides, sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Standardization:
    """Per channel of the `channel` dimension, n = channel_set.size; arrays on the mesh.

    scale, offset   stored -> standardized       (zero on static and padding channels)
    mean, std       standardized -> physical     (0 and 1 there)
    tendency        std of the 6 h tendency in units of std      (zero there)
    static          [n, lat, lon] static fields, each standardized by its own mean and deviation (zero elsewhere)
    fill            what the input has where a value is missing, NaN on channels that should lack none; None where all
                    channels are such
    seen            0 on output-only channels, 1 elsewhere; None where there are no such channels
    latitude, longitude   of the grid in radians; None where there are no forcings
    """

    scale: Float[CutArray, " n"]
    offset: Float[CutArray, " n"]
    mean: Float[CutArray, " n"]
    std: Float[CutArray, " n"]
    tendency: Float[CutArray, " n"]
    static: Float[CutArray, "n lat lon"]
    fill: Float[CutArray, " n"] | None = None
    seen: Float[CutArray, " n"] | None = None
    latitude: Float[CutArray, " lat"] | None = None
    longitude: Float[CutArray, " lon"] | None = None


def make_standardization(archive: Archive, channel_set: ChannelSet, mesh: Mesh) -> Standardization:
    """Puts an archive's statistics on the mesh, in a channel set's order.

    stored * scale + offset with scale = packing scale / std, offset = (packing offset - mean) / std. A constant static
    field becomes zero. Raises ValueError for absent channels or static fields, and for a channel whose statistics are
    not finite or whose standard deviation is zero.
    """
    check_divides(
        mesh, latitude=("lat", archive.grid.shape[0]), longitude=("lon", archive.grid.shape[1]),
        channels=("channel", channel_set.size),
    )  # fmt: skip
    chosen = archive.channel_indices(channel_set.names)
    statistics = archive.statistics
    mean, std, tendency = (values[chosen] for values in (statistics.mean, statistics.std, statistics.tendency_std))
    bad = ~(np.isfinite(mean) & np.isfinite(std) & np.isfinite(tendency) & (std > 0))
    if bad.any():
        names = [channel_set.names[index] for index in np.flatnonzero(bad)]
        raise ValueError(f"channels {names} of {archive.path} are constant or have no statistics: leave them out")
    place = lambda values, fill: _put(channel_set.pad(values, fill=fill), sharding(mesh, "channel"))  # noqa: E731
    return Standardization(
        scale=place(archive.scale[chosen] / std, 0.0),
        offset=place((archive.offset[chosen] - mean) / std, 0.0),
        mean=place(mean, 0.0),
        std=place(std, 1.0),
        tendency=place(tendency / std, 0.0),
        static=_put(_static_fields(archive, channel_set), sharding(mesh, "channel", "lat", "lon")),
    )


def place_roles(channel_set: ChannelSet, grid: Grid, mesh: Mesh) -> dict[str, jax.Array]:
    """What of a Standardization the channels' roles alone ask for: `seen`, `latitude`, `longitude`, where they do."""
    placed = {}
    if channel_set.output_only:
        seen = channel_set.pad(~np.isin(channel_set.names, channel_set.output_only), fill=1.0)
        placed["seen"] = _put(seen, sharding(mesh, "channel"))
    if channel_set.forcings:
        placed["latitude"] = _put(np.deg2rad(grid.latitude).astype(np.float32), sharding(mesh, "lat"))
        placed["longitude"] = _put(np.deg2rad(grid.longitude).astype(np.float32), sharding(mesh, "lon"))
    return placed


def standardize(
    stored: Num[Array, "b n lat lon"], s: Standardization, *, static: bool = True
) -> Float[Array, "b n lat lon"]:
    """Stored values to standardized ones, float32: stored * scale + offset, and the static fields in their channels.

    The model's input has static fields; a target can do without (static=False).
    """
    widened = stored.astype(jnp.float32) * s.scale[None, :, None, None] + s.offset[None, :, None, None]
    return widened + s.static[None] if static else widened


def to_physical(standardized: Float[Array, "b n lat lon"], s: Standardization) -> Float[Array, "b n lat lon"]:
    """Standardized values to SI units: x * std + mean."""
    return standardized * s.std[None, :, None, None] + s.mean[None, :, None, None]


def _static_fields(archive: Archive, channel_set: ChannelSet) -> Float[np.ndarray, "n lat lon"]:
    absent = [name for name in channel_set.static if name not in archive.static]
    if absent:
        raise ValueError(f"{archive.path} has no static fields {absent}; it has {list(archive.static)}")
    fields = np.zeros((channel_set.size, *archive.grid.shape), np.float32)
    for index, name in enumerate(channel_set.static, start=len(channel_set.dynamic)):
        field = archive.static[name].astype(np.float64)
        fields[index] = (field - field.mean()) / (field.std() or 1.0)
    return fields


def _put(values: np.ndarray, where: jax.sharding.NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(values.shape, where, lambda box: values[box])
