"""From stored values to states, standardized, and from states to the model's input and to SI units, on the device.

    stored --standardize--> state --make_input--> the model's input

A state holds what frames hold, NaN where a value is missing. What only the input has comes after: values in the place
of those that are missing, static fields, forcings; and channels that are output only go.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Bool, Float, Int, Num

from weathermixer.archive.reference import Reference
from weathermixer.fields import forcings
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel.mesh import CutArray, check_divides, put


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Standardization:
    """Per channel of the `channel` dimension, n = channel_set.size; arrays on the mesh.

    >>> standardization = weathermixer.open_run("runs/quickstart").open_frames("dry.archive").standardization
    >>> standardization.std.shape, standardization.static.shape
    ((4,), (4, 16, 32))
    """

    scale: Float[CutArray, " n"]  # stored * scale + offset = standardized; zero on channels that frames do not hold
    offset: Float[CutArray, " n"]
    mean: Float[CutArray, " n"]  # standardized * std + mean = physical; 0 and 1 there
    std: Float[CutArray, " n"]
    tendency: Float[CutArray, " n"]  # std of the 6 h tendency in units of std; zero there
    static: Float[CutArray, "n lat lon"]  # each standardized by its own mean and deviation; zero elsewhere
    # what the input has where a value is missing, NaN on channels that should lack none; None where all are such
    fill: Float[CutArray, " n"] | None = None
    seen: Float[CutArray, " n"] | None = None  # 0 on output-only channels, 1 elsewhere; None where there are none
    latitude: Float[CutArray, " lat"] | None = None  # of the grid in radians; None where there are no forcings
    longitude: Float[CutArray, " lon"] | None = None


def make_standardization(
    reference: Reference,
    mesh: Mesh | AbstractMesh,
    *,
    scale: Float[np.ndarray, " stored"] | float = 1.0,
    offset: Float[np.ndarray, " stored"] | float = 0.0,
) -> Standardization:
    """Puts a model's statistics on the mesh, for frames stored so that stored * scale + offset are SI units.

    Then scale = scale / std and offset = (offset - mean) / std. A constant static field becomes zero. Raises ValueError
    where the mesh does not divide the sizes.

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
    place = lambda values, fill: put(channel_set.pad(values, fill=fill), mesh, "channel")  # noqa: E731
    seen = ~np.isin(channel_set.names, channel_set.output_only)
    grid = reference.grid
    latitude, longitude = (np.deg2rad(axis).astype(np.float32) for axis in (grid.latitude, grid.longitude))
    return Standardization(
        scale=place(scale / std, 0.0),
        offset=place((offset - mean) / std, 0.0),
        mean=place(mean, 0.0),
        std=place(std, 1.0),
        tendency=put(reference.tendency, mesh, "channel"),
        static=put(_static_fields(reference), mesh, "channel", "lat", "lon"),
        fill=None if np.isnan(reference.fill).all() else place((reference.fill - mean) / std, 0.0),
        seen=place(seen, 1.0) if channel_set.output_only else None,
        latitude=put(latitude, mesh, "lat") if channel_set.forcings else None,
        longitude=put(longitude, mesh, "lon") if channel_set.forcings else None,
    )


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


def make_input(
    state: Float[Array, "b n lat lon"], s: Standardization, terms: Float[Array, "b n k"] | None = None
) -> Float[Array, "b n lat lon"]:
    """The model's input of a state; `terms` are the forcings' coefficients at its times, None where there are none."""
    return show(state, s) + surround(s, terms)


def surround(s: Standardization, terms: Float[Array, "b n k"] | None) -> Float[Array, "#b n lat lon"]:
    """What an input has beside its state: static fields and forcings, each zero on all channels but its own.

    Forcings are made of their coefficients as fields/forcings.py defines them; zero where all coefficients are.
    """
    if terms is None:
        return s.static[None]
    c = [terms[..., index][:, :, None] for index in range(forcings.TERMS)]
    sin_lat, cos_lat = jnp.sin(s.latitude)[None, None], jnp.cos(s.latitude)[None, None]
    level = c[forcings.ONE] + c[forcings.SIN_LAT] * sin_lat + c[forcings.COS_LAT] * cos_lat
    along = c[forcings.COS_LON] + c[forcings.COS_LAT_COS_LON] * cos_lat
    across = c[forcings.SIN_LON] + c[forcings.COS_LAT_SIN_LON] * cos_lat
    cos_lon, sin_lon = jnp.cos(s.longitude)[None, None, None], jnp.sin(s.longitude)[None, None, None]
    fields = level[..., None] + along[..., None] * cos_lon + across[..., None] * sin_lon
    return s.static[None] + jnp.maximum(c[forcings.FLOOR][..., None], fields)


def show(state: Float[Array, "b n lat lon"], s: Standardization) -> Float[Array, "b n lat lon"]:
    """What the model sees of a state: without what is output only, and nothing is missing."""
    if s.fill is not None:
        state = jnp.where(jnp.isfinite(state), state, s.fill[None, :, None, None])
    return state if s.seen is None else jnp.where(s.seen[None, :, None, None] > 0, state, 0)  # missing or not


def place_terms(
    channel_set: ChannelSet, times: np.ndarray, mesh: Mesh | AbstractMesh, *, step_hours: int
) -> Float[Array, "b n k"] | None:
    """The coefficients of a set's forcings at a batch of times, cut as fields are; None where it has no forcings."""
    if not channel_set.forcings:
        return None
    found = forcings.forcing_terms(channel_set.forcings, times, step_hours=step_hours).astype(np.float32)
    before = channel_set.first_forcing
    whole = np.pad(found, ((0, 0), (before, channel_set.size - before - found.shape[1]), (0, 0)))
    return put(whole, mesh, "batch", "channel", None)


def find_missing(state: Float[Array, "b n lat lon"], s: Standardization) -> Bool[Array, "b n lat lon"] | None:
    """Where values are missing on channels that may lack some; None where no channel may. Elsewhere NaN stays NaN."""
    return None if s.fill is None else ~jnp.isfinite(state) & jnp.isfinite(s.fill)[None, :, None, None]


@jax.jit
def count_unexpected(state: Float[Array, "b n lat lon"], s: Standardization) -> Int[Array, "b n"]:
    """How many values are missing or infinite on each channel that should lack none."""
    bad = ~jnp.isfinite(state)
    if s.fill is not None:
        bad &= jnp.isnan(s.fill)[None, :, None, None]
    return bad.sum((2, 3))
