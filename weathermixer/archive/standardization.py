"""From stored values to standardized ones and back, on the device; inputs.py makes the model's input of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Num

from weathermixer.archive.reference import Reference
from weathermixer.fields.grid import Grid
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel.mesh import CutArray, check_divides, sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Standardization:
    """Per channel of the `channel` dimension, n = channel_set.size; arrays on the mesh.

    scale, offset   stored -> standardized       (zero on channels that frames do not hold)
    mean, std       standardized -> physical     (0 and 1 there)
    tendency        std of the 6 h tendency in units of std      (zero there)
    static          [n, lat, lon] static fields, each standardized by its own mean and deviation (zero elsewhere)
    fill            what the input has where a value is missing, NaN on channels that should lack none; None where all
                    channels are such
    seen            0 on output-only channels, 1 elsewhere; None where there are no such channels
    latitude, longitude   of the grid in radians; None where there are no forcings

    >>> standardization = weathermixer.open_run("runs/quickstart").open_frames("dry.archive").standardization
    >>> standardization.std.shape, standardization.static.shape
    ((4,), (4, 16, 32))
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


def make_standardization(
    reference: Reference,
    mesh: Mesh,
    *,
    scale: Float[np.ndarray, " stored"] | None = None,
    offset: Float[np.ndarray, " stored"] | None = None,
) -> Standardization:
    """Puts a model's statistics on the mesh, for frames stored so that stored * scale + offset are SI units.

    Then scale = scale / std and offset = (offset - mean) / std; None: the frames are in SI units. A constant static
    field becomes zero. Raises ValueError where the mesh does not divide the sizes.

    >>> from weathermixer.archive.standardization import standardize
    >>> archive, mesh = weathermixer.open_archive("dry.archive"), weathermixer.make_mesh(1, 4, 2)
    >>> reference = weathermixer.make_reference(archive, weathermixer.ChannelSet(archive.channels))
    >>> packing = dict(scale=archive.scale, offset=archive.offset)
    >>> standardization = weathermixer.make_standardization(reference, mesh, **packing)
    >>> stored = weathermixer.read_frames(archive, reference.channel_set, mesh, np.arange(80))
    >>> f"{jax.jit(standardize)(stored, standardization).std():.1f}"
    '1.0'
    """
    channel_set, mean, std = reference.channel_set, reference.mean, reference.std
    check_divides(
        mesh, latitude=("lat", reference.grid.shape[0]), longitude=("lon", reference.grid.shape[1]),
        channels=("channel", channel_set.size),
    )  # fmt: skip
    scale, offset = (1.0 if scale is None else scale), (0.0 if offset is None else offset)
    place = lambda values, fill: _put(channel_set.pad(values, fill=fill), sharding(mesh, "channel"))  # noqa: E731
    return Standardization(
        scale=place(scale / std, 0.0),
        offset=place((offset - mean) / std, 0.0),
        mean=place(mean, 0.0),
        std=place(std, 1.0),
        tendency=_put(reference.tendency, sharding(mesh, "channel")),
        static=_put(_static_fields(reference), sharding(mesh, "channel", "lat", "lon")),
        fill=None if np.isnan(reference.fill).all() else place((reference.fill - mean) / std, 0.0),
        **place_roles(channel_set, reference.grid, mesh),
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


def standardize(stored: Num[Array, "b n lat lon"], s: Standardization) -> Float[Array, "b n lat lon"]:
    """Stored values to standardized ones, float32: stored * scale + offset; NaN where one is missing."""
    return stored.astype(jnp.float32) * s.scale[None, :, None, None] + s.offset[None, :, None, None]


def to_physical(standardized: Float[Array, "b n lat lon"], s: Standardization) -> Float[Array, "b n lat lon"]:
    """Standardized values to SI units: x * std + mean."""
    return standardized * s.std[None, :, None, None] + s.mean[None, :, None, None]


def _static_fields(reference: Reference) -> Float[np.ndarray, "n lat lon"]:
    channel_set = reference.channel_set
    fields = np.zeros((channel_set.size, *reference.grid.shape), np.float32)
    for index, name in enumerate(channel_set.static, start=channel_set.first_static):
        field = reference.static[name].astype(np.float64)
        fields[index] = (field - field.mean()) / (field.std() or 1.0)
    return fields


def _put(values: np.ndarray, where: jax.sharding.NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(values.shape, where, lambda box: values[box])
