"""The training loss: squared error of standardized fields, weighted by cell area and channel."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from weathermixer.fields.grid import cosine_weights
from weathermixer.fields.variables import ChannelSet, find_channels

CHANNEL_WEIGHTS = ("published", "uniform", "tendency")
FORMS = ("weighted_square", "published")


def weighted_mse(
    prediction: Float[Array, "b c lat lon"],
    target: Float[Array, "b c lat lon"],
    *,
    area: Float[np.ndarray, " lat"],
    channel: Float[np.ndarray, " c"],
    missing: Bool[Array, "b c lat lon"] | None = None,
) -> Float[Array, ""]:
    """Mean squared error of standardized fields, weighted by cell area and channel, in float32.

        L = mean_{b,c,lat,lon}  area[lat] * channel[c] * (prediction - target)^2      over channels with a weight

    Channels that are not predicted have weight zero and do not count in the mean. Where the target is `missing`, the
    mean over lat and lon is that of the other points, for each sample and channel, and 0 where there are none:

        sum area * error^2 / sum area      over points that are not missing
    """
    error, rows = prediction.astype(jnp.float32) - target.astype(jnp.float32), area.astype(np.float32)
    if missing is not None:
        error = jnp.where(missing, 0.0, error)
    weighted = jnp.square(error) * channel.astype(np.float32)[None, :, None, None] * rows[None, None, :, None]
    if missing is not None:
        there = (jnp.where(missing, 0.0, rows[None, None, :, None]) / rows.mean()).mean((2, 3))
        weighted = weighted.mean((2, 3)) / jnp.where(there > 0, there, 1.0)
    return weighted.mean() * (len(channel) / np.count_nonzero(channel))


def make_loss_weights(
    form: str,
    channel_weights: str,
    *,
    latitude: Float[np.ndarray, " lat"],
    channel_set: ChannelSet,
    tendency: Float[np.ndarray, " c"],
    factors: Mapping[str, float],
) -> tuple[Float[np.ndarray, " lat"], Float[np.ndarray, " c"]]:
    """The loss's (area, channel) weights.

    Args:
      form: "weighted_square", weights outside the square and with mean one, so that losses compare across grids and
        channel sets; or "published", weights inside the square, so that they act squared, without normalization
        (Jigsaw's artifact: mean[((y - t) * cos_lat * w)^2]).
      channel_weights: "published" (by variable and level), "uniform", or "tendency": each channel's error counts in
        units of its own 6 h tendency.
      tendency: [channel] standardized 6 h tendency standard deviation.
      factors: of these weights, by name of channel or variable.

    Raises ValueError for an unknown option or name, for factors that leave no weight, and for "tendency" where a
    channel never changes.
    """
    if form not in FORMS:
        raise ValueError(f"loss form={form!r} is not one of {FORMS}")
    if channel_weights not in CHANNEL_WEIGHTS:
        raise ValueError(f"loss channel_weights={channel_weights!r} is not one of {CHANNEL_WEIGHTS}")
    predicted, area = channel_set.predicted, cosine_weights(latitude)
    if channel_weights == "published":
        weights = np.array([channel.weight for channel in channel_set.dynamic], np.float64)
    elif channel_weights == "uniform":
        weights = np.ones(len(channel_set.dynamic))
    else:
        tendency = np.asarray(tendency, np.float64)[predicted]
        if not np.all(tendency > 0):
            still = [name for name, value in zip(channel_set.names, tendency, strict=True) if not value > 0]
            raise ValueError(f"channels {still} have no 6 h tendency: choose loss.channel_weights='published'")
        weights = tendency**-2
    for name, factor in factors.items():
        weights[find_channels(channel_set.dynamic, [name])] *= factor
    if not weights.any():
        raise ValueError(f"loss.weights={dict(factors)} leave nothing to minimize: give some channel more than 0")
    if form == "published":
        return area**2, channel_set.pad(weights**2)
    return area, channel_set.pad(weights / weights[weights > 0].mean())
