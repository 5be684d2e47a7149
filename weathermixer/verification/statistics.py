"""Statistics of single forecasts, apart from the metrics that are made of their means (metrics.py), as WeatherBench-X.

A statistic is one number per sample, channel and region, computed on the device from arrays that are cut over the mesh.
Statistics are averaged over time in float64 on the host, so they stream over batches and leads, and stay apart by start
for whoever compares two forecasts. (Rasp et al. 2024, WeatherBench 2, section 3.)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from weathermixer.parallel.mesh import spec

Fields = Float[Array, "b n lat lon"]
Means = dict[str, Float[Array, "b n region"]]
STATISTICS = {
    "squared_error": "area-weighted mean squared error",
    "error": "area-weighted mean error, forecast minus analysis",
    "absolute_error": "area-weighted mean absolute error",
    "anomaly_correlation": "area-weighted correlation of anomalies from climatology",
    "anomaly_covariance": "area-weighted mean product of the anomalies of forecast and analysis",
    "squared_anomaly": "area-weighted mean squared anomaly of the forecast",
    "squared_target_anomaly": "area-weighted mean squared anomaly of the analysis",
    # of precipitation, and of ensembles
    "seeps": "area-weighted mean stable equitable error in probability space, where dry times are a tenth to 0.85",
    "crps_skill": "area-weighted mean absolute error of the members",
    "crps_spread": "area-weighted mean absolute difference of two members",
    "variance": "area-weighted mean variance of the members",
    "mean_squared_error_unbiased": "squared error of the members' mean without what their finite number adds",
    "energy_skill": "mean distance of members from the analysis, the root of the area-weighted mean square",
    "energy_spread": "mean distance of two members, the root of the area-weighted mean square",
}
SINGLE = 7  # the first so many are those of single forecasts
# precipitation of which SEEPS is defined, and the amount in m that a dry time stays below (WeatherBench 2)
DRY = {"total_precipitation_6hr": 1e-4, "total_precipitation_24hr": 2.5e-4}


class Regions(NamedTuple):
    """What means are over: weights of sum one (regions.region_weights), at the points that are not `missing`."""

    weights: Float[Array, "region lat lon"]
    missing: Bool[Array, "b n lat lon"] | None = None

    def mean(self, field: Fields) -> Float[Array, "b n region"]:
        """Sums weights * field over those of the weights alone; NaN where no point is there."""
        if self.missing is not None:
            whole = Regions(self.weights)
            return whole.mean(jnp.where(self.missing, 0.0, field)) / whole.mean(jnp.where(self.missing, 0.0, 1.0))
        cut = spec("batch", "channel", None)
        return jnp.einsum("bnij,rij->bnr", field, self.weights, precision="highest", out_sharding=cut)


def field_statistics(
    prediction: Fields, target: Fields, climatology: Fields | None, *, over: Regions, scale: Float[Array, " n"]
) -> Means:
    """Statistics of standardized fields; `scale` (each channel's standard deviation) gives them physical units.

        squared_error, error, absolute_error    A[e^2], A[e], A[|e|],   e = scale (p - t),   A: the mean over a region
        anomaly_correlation                     A[(p - c)(t - c)] / sqrt(A[(p - c)^2] A[(t - c)^2])
        anomaly_covariance and the squared anomalies are its parts, in physical units

    The correlation is taken per sample and averaged over time afterwards, as WeatherBench 2's ACC; it is NaN where
    prediction or target equals the climatology c everywhere. Points that are `missing` do not count; without a
    climatology there is nothing of anomalies.
    """
    mean, error = over.mean, (prediction - target) * scale[None, :, None, None]
    found = {"squared_error": mean(error**2), "error": mean(error), "absolute_error": mean(jnp.abs(error))}
    if climatology is None:
        return found
    anomaly, target_anomaly = prediction - climatology, target - climatology
    covariance, own, of_target = mean(anomaly * target_anomaly), mean(anomaly**2), mean(target_anomaly**2)
    square = (scale**2)[None, :, None]
    return found | {
        "anomaly_correlation": covariance / jnp.sqrt(own * of_target),
        "anomaly_covariance": covariance * square,
        "squared_anomaly": own * square,
        "squared_target_anomaly": of_target * square,
    }


def seeps(
    prediction: Fields,
    target: Fields,
    heavy: Fields,
    share: Float[Array, "n lat lon"],
    *,
    dry: Float[Array, " n"],
    over: Regions,
) -> Float[Array, "b n region"]:
    """SEEPS of amounts in m that are dry, light or heavy (Rodwell et al. 2010, as WeatherBench 2 has it).

        A[cost(forecast, truth)],   cost = 1/2 [0,               1 / (1 - p),   4 / (1 - p)]     p: `share` of dry times
                                               [1 / p,           0,             3 / (1 - p)]
                                               [1/p + 3/(2 + p), 3 / (2 + p),   0          ]

    over points where p is between 0.1 and 0.85; dry is below `dry`, heavy from `heavy` on, the season's threshold.
    """
    p, dry = share[None], dry[None, :, None, None]
    cost = (0, 1 / (1 - p), 4 / (1 - p)), (1 / p, 0, 3 / (1 - p)), (1 / p + 3 / (2 + p), 3 / (2 + p), 0)
    (x, y) = (((f < dry), (f > dry) & (f < heavy), f >= heavy) for f in (prediction, target))
    found = sum(cost[i][j] / 2 * (x[i] & y[j]) for i in range(3) for j in range(3))
    outside = jnp.broadcast_to(~((p > 0.1) & (p < 0.85)), found.shape)
    found = jnp.where(jnp.isnan(prediction), jnp.nan, found)
    return over._replace(missing=outside if over.missing is None else outside | over.missing).mean(found)


def ensemble_statistics(
    members: Float[Array, "number b n lat lon"], target: Fields, *, over: Regions, scale: Float[Array, " n"]
) -> dict[str, Float[Array, "b n region ..."]]:
    """Statistics of an ensemble of M members x, at least two, beside those of its mean m (field_statistics).

        crps_skill, crps_spread      A[mean |x - t|], A[sum |x_i - x_j| / (M (M - 1))]       CRPS = skill - spread / 2
        variance                     A[sum (x - m)^2 / (M - 1)]
        energy_skill, energy_spread  mean sqrt(A[(x - t)^2]), mean sqrt(A[(x_i - x_(i+1))^2])
        rank_histogram               [b n region rank] A[t above 0, 1, ... M members]; ties are spread over their ranks

    CRPS and energy score are fair: they do not depend on M (Zamo and Naveau 2018; WeatherBench 2's EnergyScore).
    """
    count, mean = members.shape[0], over.mean
    scale = scale[None, None, :, None, None]
    members, target = members * scale, target[None] * scale

    def distance(fields):
        return jax.lax.map(lambda field: jnp.sqrt(mean(field**2)), fields).mean(axis=0)

    average, variance = members.mean(axis=0), members.var(axis=0, ddof=1)
    rank = (2.0 * jnp.arange(1, count + 1) - count - 1)[:, None, None, None, None]
    spread = 2 / (count * (count - 1)) * (rank * jnp.sort(members, axis=0)).sum(axis=0)
    below, equal = (members < target).sum(axis=0), (members == target).sum(axis=0)

    def share(rank):
        return mean(jnp.where((below <= rank) & (rank <= below + equal), 1 / (equal + 1), 0.0))

    return {
        "rank_histogram": jnp.moveaxis(jax.lax.map(share, jnp.arange(count + 1)), 0, -1),
        "crps_skill": mean(jnp.abs(members - target).mean(axis=0)),
        "crps_spread": mean(spread),
        "variance": mean(variance),
        "mean_squared_error_unbiased": mean((average - target[0]) ** 2 - variance / count),
        "energy_skill": distance(members - target),
        "energy_spread": distance(members[1:] - members[:-1]),
    }


def zonal_power(
    field: Fields, rows: Float[Array, "band lat"], *, scale: Float[Array, " n"]
) -> Float[Array, "b n band wavenumber"]:
    """Zonal power spectra by latitude band, the mean over rows, weighted, of

        S[0] = |F[0]|^2,   S[k] = 2 |F[k]|^2,   F[k] = 1/L sum_l f[l] exp(-2 pi i k l / L)

    This is WeatherBench 2's ZonalEnergySpectrum without its factor, the length of each circle of latitude.
    """
    size = field.shape[3]
    # a matrix in the place of the FFT: it can be cut over any mesh
    angles = 2 * np.pi / size * (np.outer(np.arange(size), np.arange(size // 2 + 1)) % size)
    weight = np.where(np.arange(size // 2 + 1) > 0, 2, 1).astype(np.float32)
    power = 0.0
    cut = spec("batch", "channel", "lat", None)
    for wave in (np.cos(angles) / size, np.sin(angles) / size):
        wave = wave.astype(np.float32)
        power += jnp.einsum("bnij,jk->bnik", field, wave, precision="highest", out_sharding=cut) ** 2
    cut = spec("batch", "channel", None, None)
    power = jnp.einsum("bnik,ri->bnrk", power, rows, precision="highest", out_sharding=cut)
    return power * (scale**2)[None, :, None, None] * weight[None, None, None]


def coarsen(
    field: Fields,
    missing: Bool[Array, "b n lat lon"] | None,
    rows: Float[Array, "to_lat lat"],
    columns: Float[Array, "to_lon lon"],
) -> Float[Array, "b n to_lat to_lon"]:
    """Fields on a coarser grid, conservatively (fields.grid.conservative_weights): means of what is not `missing`."""
    if missing is not None:
        there = coarsen(jnp.where(missing, 0.0, 1.0), None, rows, columns)
        return coarsen(jnp.where(missing, 0.0, field), None, rows, columns) / there
    narrow = jnp.einsum("bnij,lj->bnil", field, columns, precision="highest")
    cut = spec("batch", "channel", None, None)
    return jnp.einsum("bnil,ki->bnkl", narrow, rows, precision="highest", out_sharding=cut)
