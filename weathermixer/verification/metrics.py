"""Metrics: functions of the statistics' means over forecasts, in the units of the field or in none.

scores = compute_metrics(statistics)                    all forecasts
scores = compute_metrics(statistics, by="season")       those that start in each season; or by="hour" of the day
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from weathermixer.verification.statistics import STATISTICS

GROUPS = ("season", "hour")  # of the start


class Metric(NamedTuple):
    """A function of the means of some statistics; `has_units`: it is in those of the field."""

    needs: tuple[str, ...]
    function: Callable[..., Any]
    long_name: str
    has_units: bool = True


def _fair_score(skill: xr.DataArray, spread: xr.DataArray) -> xr.DataArray:
    """Members' mean distance from the analysis, less half of that from each other."""
    return skill - spread / 2


METRICS = {
    "rmse": Metric(("squared_error",), np.sqrt, "root of the mean over forecasts of the mean squared error"),
    "bias": Metric(("error",), lambda x: x, "mean error, forecast minus analysis"),
    "mae": Metric(("absolute_error",), lambda x: x, "mean absolute error"),
    "acc": Metric(
        ("anomaly_correlation",),
        lambda x: x,
        "mean over forecasts of the correlation of anomalies from climatology (WeatherBench 2)",
        False,
    ),
    "acc_pooled": Metric(
        ("anomaly_covariance", "squared_anomaly", "squared_target_anomaly"),
        lambda covariance, own, of_target: covariance / np.sqrt(own * of_target),
        "correlation of anomalies from climatology, over forecasts and points together (WeatherBench-X)",
        False,
    ),
    "activity": Metric(("squared_anomaly",), np.sqrt, "root mean squared anomaly of the forecast (WeatherBench-X)"),
    "activity_ratio": Metric(
        ("squared_anomaly", "squared_target_anomaly"),
        lambda own, of_target: np.sqrt(own / of_target),
        "activity of the forecast over that of the analysis",
        False,
    ),
    "seeps": Metric(("seeps",), lambda x: x, "stable equitable error in probability space", False),
    "crps": Metric(("crps_skill", "crps_spread"), _fair_score, "fair CRPS"),
    "spread": Metric(("variance",), np.sqrt, "root of the mean variance of the members"),
    "spread_skill": Metric(
        ("variance", "mean_squared_error_unbiased"),
        lambda variance, error: np.sqrt(variance / error),
        "spread over the unbiased RMSE of the members' mean: one where an ensemble knows its errors",
        False,
    ),
    "energy_score": Metric(("energy_skill", "energy_spread"), _fair_score, "energy score"),
}


def compute_metrics(statistics: xr.Dataset, *, by: str | None = None) -> xr.Dataset:
    """All metrics that the statistics [source, time, ...] allow, for each group of starts where `by` names one.

    Only what is `counted` enters; a statistic that is not a number there makes its mean none.
    """
    means = mean_statistics(statistics, by=by)
    with np.errstate(invalid="ignore", divide="ignore"):
        return xr.Dataset(
            {
                name: metric.function(*(means[need] for need in metric.needs)).assign_attrs(long_name=metric.long_name)
                for name, metric in METRICS.items()
                if all(need in means for need in metric.needs)
            }
        )


def mean_statistics(statistics: xr.Dataset, *, by: str | None = None) -> Mapping[str, xr.DataArray]:
    """The statistics' means over starts, float64, NaN where none counts."""
    if by is not None:
        if by not in GROUPS:
            raise ValueError(f"by={by!r} is not one of {GROUPS}")
        groups = statistics.groupby(f"time.{by}")
        return xr.concat([xr.Dataset(mean_statistics(group)).assign_coords({by: name}) for name, group in groups], by)
    counted = statistics["counted"]
    with np.errstate(invalid="ignore"):
        return {
            name: array.where(counted, 0).astype(np.float64).sum("time", skipna=False) / counted.sum("time")
            for name, array in statistics.items()
            if name in STATISTICS
        }
