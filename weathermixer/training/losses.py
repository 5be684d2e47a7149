"""The training loss of standardized fields, weighted by cell area and channel: squared error, or an ensemble's CRPS."""

import itertools
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from weathermixer.archive.reference import Reference
from weathermixer.fields.grid import cosine_weights
from weathermixer.fields.variables import find_channels
from weathermixer.parallel.mesh import spec

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
    return _weighted_mean(jnp.square(_error(prediction, target, missing)), area, channel, missing)


def fair_crps(
    prediction: Float[Array, "bm c lat lon"],
    target: Float[Array, "bm c lat lon"],
    *,
    members: int,
    area: Float[np.ndarray, " lat"],
    channel: Float[np.ndarray, " c"],
    missing: Bool[Array, "bm c lat lon"] | None = None,
    spectral: float = 0.0,
) -> Float[Array, ""]:
    """Mean fair CRPS of ensembles, each of `members` rows one after the other, weighted as in weighted_mse.

        L = mean of CRPS(x, y) over points + spectral * mean of CRPS(F x, F y) over each row's coefficients
        CRPS = 1/M sum_i |x_i - y| - 1/(2 M (M - 1)) sum_ij |x_i - x_j|       (Ferro 2014, doi 10.1002/qj.2270)
        F[k] = sqrt(w[k] / N) sum_l f[l] exp(-2 pi i k l / N),  w = 2, but 1 at k = 0 and k = N/2;  N = lon

    Its expectation is least for members drawn from the distribution of the target, whatever their number. Points alone
    do not see whether errors at several go together; zonal coefficients do, real and imaginary parts each by itself (of
    spherical harmonics: Bonev et al. 2025, arXiv 2507.12144). Their squares sum up to those of the points, so that both
    terms are equal for white noise. Where the target is `missing`, members have its value: 0 in all.
    """
    error = _error(prediction, target, missing)
    shape, cut = (len(error) // members, members, *error.shape[1:]), spec("batch", None, "channel", "lat", "lon")
    error = jnp.reshape(error, shape, out_sharding=cut)
    crps = _fair(error)
    if spectral:
        crps += spectral * _fair(_zonal(error)).sum(-1, keepdims=True) / shape[-1]
    if missing is not None:
        missing = jnp.reshape(missing, shape, out_sharding=cut)[:, 0]
    return _weighted_mean(crps, area, channel, missing)


def _fair(error: Float[Array, "b m c lat k"]) -> Float[Array, "b c lat k"]:
    members = error.shape[1]
    apart = sum(jnp.abs(error[:, i] - error[:, j]) for i, j in itertools.combinations(range(members), 2))
    return jnp.abs(error).mean(1) - apart / (members * (members - 1))


def _zonal(fields: Float[Array, "b m c lat lon"]) -> Float[Array, "b m c lat k"]:
    """Real and imaginary parts of F; no row is cut, so that each device transforms its own."""
    found, size = jnp.fft.rfft(fields, norm="ortho"), fields.shape[-1]
    scale = np.sqrt(np.where(2 * np.arange(size // 2 + 1) % size, 2, 1)).astype(np.float32)[None, None, None, None]
    return jnp.concatenate([found.real * scale, found.imag * scale], axis=-1)


def _error(prediction, target, missing):
    error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    return error if missing is None else jnp.where(missing, 0.0, error)


def _weighted_mean(values, area, channel, missing):
    rows = area.astype(np.float32)
    weighted = values * channel.astype(np.float32)[None, :, None, None] * rows[None, None, :, None]
    if missing is not None:
        there = (jnp.where(missing, 0.0, rows[None, None, :, None]) / rows.mean()).mean((2, 3))
        weighted = weighted.mean((2, 3)) / jnp.where(there > 0, there, 1.0)
    return weighted.mean() * (len(channel) / np.count_nonzero(channel))


def make_loss_weights(
    reference: Reference, *, form: str, channel_weights: str, factors: Mapping[str, float]
) -> tuple[Float[np.ndarray, " lat"], Float[np.ndarray, " c"]]:
    """The loss's (area, channel) weights, for a model's channels and grid.

    Args:
      form: "weighted_square", weights outside the square and with mean one, so that losses compare across grids and
        channel sets; or "published", weights inside the square, so that they act squared, without normalization
        (Jigsaw's artifact: mean[((y - t) * cos_lat * w)^2]).
      channel_weights: "published" (by variable and level), "uniform", or "tendency": each channel's error counts in
        units of its own 6 h tendency.
      factors: of these weights, by name of channel or variable.

    Raises ValueError for an unknown name, for factors that leave no weight, and for "tendency" where a channel never
    changes.
    """
    channel_set, area = reference.channel_set, cosine_weights(reference.grid.latitude)
    if channel_weights == "published":
        weights = np.array([channel.weight for channel in channel_set.dynamic], np.float64)
    elif channel_weights == "uniform":
        weights = np.ones(len(channel_set.dynamic))
    else:
        tendency = np.asarray(reference.tendency, np.float64)[channel_set.predicted]
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
