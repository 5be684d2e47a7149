"""Scores as WeatherBench 2 defines them: statistics of single fields, apart from the metrics made of their means.

A statistic is one number per sample and channel, computed on the device from arrays that are cut over the mesh.
Statistics are averaged over time in float64 on the host, so they stream over batches and leads; a metric (RMSE, bias,
ACC) is a function of these means. (Rasp et al. 2024, WeatherBench 2, section 3; the split is WeatherBench-X's.)
"""

import functools
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

STATISTICS = ("squared_error", "error", "anomaly_correlation")
Statistics = dict[str, Float[Array, "b n"]]
Means = Mapping[str, np.ndarray]

# metric -> function of the statistics' means over time, in the units of the field (ACC has none)
METRICS: dict[str, Callable[[Means], np.ndarray]] = {
    "rmse": lambda means: np.sqrt(means["squared_error"]),
    "bias": lambda means: means["error"],
    "acc": lambda means: means["anomaly_correlation"],
}
LONG_NAMES = {
    "rmse": "root of the mean over time of the area-weighted mean squared error",
    "bias": "mean over time of the area-weighted mean error, forecast minus analysis",
    "acc": "mean over time of the area-weighted spatial correlation of anomalies from climatology",
}


def area_mean(
    field: Float[Array, "b n lat lon"],
    area: Float[ArrayLike, " lat"],
    missing: Bool[Array, "b n lat lon"] | None = None,
) -> Float[Array, "b n"]:
    """Area-weighted mean over the globe: mean_{lat,lon} area[lat] * field; `area` has mean one (grid.area_weights).

    Where points are `missing` it is the mean over the others, sum area * field / sum area, NaN where there are none.
    Longitudes are summed first: in two stages a float32 sum of a million terms loses no digit that counts.
    """
    if missing is not None:
        return area_mean(jnp.where(missing, 0.0, field), area) / area_mean(jnp.where(missing, 0.0, 1.0), area)
    rows = jnp.mean(field, axis=3)
    return jnp.mean(rows * jnp.asarray(area, jnp.float32)[None, None, :], axis=2)


def field_statistics(
    prediction: Float[Array, "b n lat lon"],
    target: Float[Array, "b n lat lon"],
    climatology: Float[Array, "b n lat lon"],
    *,
    area: Float[ArrayLike, " lat"],
    scale: Float[Array, " n"],
    missing: Bool[Array, "b n lat lon"] | None = None,
) -> Statistics:
    """Statistics [b, n] of standardized fields; `scale` (each channel's standard deviation) gives them physical units.

        squared_error         A[(scale (p - t))^2]                          A: the area-weighted mean over the globe
        error                 A[scale (p - t)]
        anomaly_correlation   A[(p - c)(t - c)] / sqrt(A[(p - c)^2] A[(t - c)^2])

    The correlation is taken per sample and averaged over time afterwards, as WeatherBench 2's ACC; it is NaN where
    prediction or target equals the climatology c everywhere. Points that are `missing` do not count.
    """
    error = (prediction - target) * scale[None, :, None, None]
    anomaly, target_anomaly = prediction - climatology, target - climatology
    mean = functools.partial(area_mean, area=area, missing=missing)
    return {
        "squared_error": mean(error**2),
        "error": mean(error),
        "anomaly_correlation": mean(anomaly * target_anomaly) / jnp.sqrt(mean(anomaly**2) * mean(target_anomaly**2)),
    }
