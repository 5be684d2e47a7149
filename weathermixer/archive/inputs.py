"""From states to the model's input, on the device, and what of a state is missing.

    stored --standardize--> state --make_input--> the model's input

A state holds what frames hold, NaN where a value is missing. What only the input has comes after: values in the place
of those that are missing, static fields, forcings; and channels that are output only go.
"""

from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, reshard
from jaxtyping import Array, Bool, Float

from weathermixer.archive.standardization import Standardization
from weathermixer.fields import forcings
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel.mesh import sharding


def make_input(
    state: Float[Array, "b n lat lon"], s: Standardization, terms: Float[Array, "b n k"] | None = None
) -> Float[Array, "b n lat lon"]:
    """The model's input of a state; `terms` are the forcings' coefficients at its times, None where there are none."""
    return show(state, s) + surround(s, terms)


def surround(s: Standardization, terms: Float[Array, "b n k"] | None) -> Float[Array, "#b n lat lon"]:
    """What an input has beside its state: static fields and forcings, each zero on all channels but its own."""
    static = s.static[None]
    return static if terms is None else static + forcing_fields(terms, s.latitude, s.longitude)


def show(state: Float[Array, "b n lat lon"], s: Standardization) -> Float[Array, "b n lat lon"]:
    """What the model sees of a state: without what is output only, and nothing is missing."""
    if s.fill is not None:
        state = jnp.where(jnp.isfinite(state), state, s.fill[None, :, None, None])
    return state if s.seen is None else jnp.where(s.seen[None, :, None, None] > 0, state, 0)  # missing or not


def forcing_fields(
    terms: Float[Array, "b n k"], latitude: Float[Array, " lat"], longitude: Float[Array, " lon"]
) -> Float[Array, "b n lat lon"]:
    """Forcings from their coefficients, as fields/forcings.py defines them; zero where all coefficients are."""
    c = [terms[..., index][:, :, None] for index in range(forcings.TERMS)]
    sin_lat, cos_lat = jnp.sin(latitude)[None, None], jnp.cos(latitude)[None, None]
    level = c[forcings.ONE] + c[forcings.SIN_LAT] * sin_lat + c[forcings.COS_LAT] * cos_lat
    along = c[forcings.COS_LON] + c[forcings.COS_LAT_COS_LON] * cos_lat
    across = c[forcings.SIN_LON] + c[forcings.COS_LAT_SIN_LON] * cos_lat
    cos_lon, sin_lon = jnp.cos(longitude)[None, None, None], jnp.sin(longitude)[None, None, None]
    fields = level[..., None] + along[..., None] * cos_lon + across[..., None] * sin_lon
    return jnp.maximum(c[forcings.FLOOR][..., None], fields)


def place_terms(
    channel_set: ChannelSet, times: np.ndarray, mesh: Mesh, *, step_hours: int
) -> Float[Array, "b n k"] | None:
    """The coefficients of a set's forcings at a batch of times, cut as fields are; None where it has no forcings."""
    if not channel_set.forcings:
        return None
    found = forcings.forcing_terms(channel_set.forcings, times, step_hours=step_hours).astype(np.float32)
    before = channel_set.first_forcing
    whole = np.pad(found, ((0, 0), (before, channel_set.size - before - found.shape[1]), (0, 0)))
    return jax.make_array_from_callback(whole.shape, sharding(mesh, "batch", "channel", None), lambda box: whole[box])


def find_missing(state: Float[Array, "b n lat lon"], s: Standardization) -> Bool[Array, "b n lat lon"] | None:
    """Where values are missing on channels that may lack some; None where no channel may. Elsewhere NaN stays NaN."""
    return None if s.fill is None else ~jnp.isfinite(state) & jnp.isfinite(s.fill)[None, :, None, None]


def check_complete(
    state: Float[Array, "b n lat lon"],
    s: Standardization,
    channel_set: ChannelSet,
    *,
    times: np.ndarray,
    name: str,
    absent: Collection[str] = (),
) -> None:
    """Raises ValueError, with channel and time, where a data set of this name lacks values that it should have.

    `absent` are the channels that it does not have at all, and need not have.
    """
    counts = reshard(_count_unexpected(state, s), NamedSharding(state.sharding.mesh, PartitionSpec()))
    lacking = np.asarray(counts)[:, : len(channel_set.stored)] * ~np.isin(channel_set.stored_names, list(absent))
    if lacking.any():
        row, channel = np.argwhere(lacking)[0]
        what = f"{channel_set.stored_names[channel]} at {times[row]:.16}"
        count = f"{lacking[row, channel]} of {np.prod(state.shape[2:])}"
        raise ValueError(
            f"{name}: {what} has {count} values that are missing or infinite, and its statistics know of none: leave "
            f"this time out (experiments.prepare --exclude={times[row]:.13}), or train without the channel"
        )


@jax.jit
def _count_unexpected(state: Array, s: Standardization) -> Array:
    bad = ~jnp.isfinite(state)
    if s.fill is not None:
        bad &= jnp.isnan(s.fill)[None, :, None, None]
    return bad.sum((2, 3))
