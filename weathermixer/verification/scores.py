"""Scores for people and for programs: aligned tables, JSON and netCDF files, from the Dataset of `evaluate`."""

import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from weathermixer.archive import storage
from weathermixer.verification.evaluation import BASELINES
from weathermixer.verification.metrics import GROUPS, METRICS
from weathermixer.verification.significance import compare

# what a forecaster reads, where it is not the archive's SI unit: (factor, units)
READ_AS = {
    "kg kg**-1": (1000.0, "g/kg"),
    "m s**-1": (1.0, "m/s"),
    "m**2 s**-2": (1.0, "m2/s2"),
    "Pa s**-1": (1.0, "Pa/s"),
}
COLUMNS = 120  # of a terminal
PARTS = (*GROUPS, "grid", "region")  # dimensions that scores may have more, of each of which there are tables
SHORT = {"persistence": "persist", "climatology": "climat"}
LEAD = "lead / h"


def format_scores(scores: xr.Dataset) -> str:
    """A plain-text table: one row per channel, for each lead RMSE of all sources; bias and ACC of the forecasts follow.

    `ratio` is a single forecast's RMSE over the better baseline's: below 1 the forecast is worth its name. Of several
    forecasts the RMSE of each is compared with the first's: the difference in per cent and its 95 % interval (block
    bootstrap), with a * where the t-test says p < 0.05. Tables fit a terminal of 120 columns.

    >>> run = weathermixer.open_run("runs/quickstart")
    >>> scores = run.evaluate("dry.archive", period=("2000-01-17", "2000-01-18"), lead_hours=[6])
    >>> print("\\n".join(weathermixer.format_scores(scores).splitlines()[2:6]))
    samples: 7 at 6 h
    <BLANKLINE>
    RMSE          6 h
                model persist climat   ratio
    """
    lines = describe_scores(scores)
    parts = [dim for dim in PARTS if dim in scores.rmse.dims]
    for index in np.ndindex(*(scores.sizes[dim] for dim in parts)):
        part = scores.isel(dict(zip(parts, index, strict=True)))
        for group in [dim for dim in parts if dim in GROUPS]:
            part = part.isel(time=getattr(part.time.dt, group).values == part[group].item())
            part["samples"] = part.counted.any("channel").sum("time")
        lines += ["", ", ".join([*(f"{dim} {part[dim].item()}" for dim in parts), count_samples(part)])]
        table = tabulate(part)
        for what in table.columns.unique(0):
            lines += _format_table(what, table[what].rename(columns=SHORT))
    return "\n".join(line.rstrip() for line in lines)


def describe_scores(scores: xr.Dataset) -> list[str]:
    """Lines that say of what they are."""
    about = scores.attrs
    forecasts = f"{about['mode']} forecasts from {about['first_start']} to {about['last_start']} UTC"
    climatology = f"steps of {about['step_hours']} h; climatology: {about['climatology']}"
    return [f"{forecasts}, {climatology}", *about["notes"].splitlines()]


def count_samples(scores: xr.Dataset) -> str:
    """How many starts count at each lead, as a line."""
    counts = zip(scores.lead_hours.values, scores.samples.values)
    return "samples: " + ", ".join(f"{count} at {lead} h" for lead, count in counts)


def tabulate(scores: xr.Dataset, against: str | None = None) -> pd.DataFrame:
    """What tables say, by (title, heading), in rows by channel, unit and lead, all as texts.

    RMSE of all sources, bias and ACC of each forecast, and differences in RMSE: of the further forecasts to the first,
    of a single one to the source `against`.
    """
    names = scores.source.values.tolist()
    forecasts = [name for name in names if name not in BASELINES]
    scores = scores.transpose("source", ..., "lead_hours", "channel")
    factors, units = zip(*(READ_AS.get(unit, (1.0, unit)) for unit in scores.units.values))
    rmse, bias = (dict(zip(names, values * factors)) for values in (scores.rmse.values, scores.bias.values))
    texts = {("RMSE", name): _texts(digits, rmse[name]) for name in names}
    if len(forecasts) == 1 and len(names) > 1:
        best = np.where(np.isfinite(rest := [rmse[name] for name in names[1:]]), rest, np.inf).min(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):  # a perfect baseline, or none
            texts["RMSE", "ratio"] = _texts("{:.2f}".format, rmse[forecasts[0]] / best)
    for name in forecasts:
        texts[f"of {name}", "bias"] = _texts(digits, bias[name])
        texts[f"of {name}", "ACC"] = _texts("{:.3f}".format, scores.acc.sel(source=name).values)
    pairs = [(name, forecasts[0]) for name in forecasts[1:]] or [(forecasts[0], against)] * bool(against)
    for one, other in pairs:
        found = compare(scores, one, other).transpose(..., "lead_hours", "channel")
        with np.errstate(divide="ignore", invalid="ignore"):
            percent = [100 * found[key].values * factors / rmse[other] for key in ("difference", "low", "high")]
        stars = np.where(found.p_value.values < 0.05, "*", "")
        texts[f"{one}, %", f"RMSE to {other}"] = _texts(_interval, *percent, stars)
    rows = [(*row, lead) for row in zip(scores.short.values, units) for lead in scores.lead_hours.values]
    index = pd.MultiIndex.from_tuples(rows, names=["channel", "unit", LEAD])
    return pd.DataFrame({column: values.T.ravel() for column, values in texts.items()}, index)


def write_scores(scores: xr.Dataset, path: str | os.PathLike) -> None:
    """Writes the metrics as JSON and all as netCDF beside it (.nc), each whole or not at all.

    JSON: {metric: {source: {channel: [value per lead]}}} and metadata, with grids, regions and groups of starts, where
    there are such, between source and channel. An undefined score (the ACC of the climatology itself) is null.
    """
    document = {
        **scores.attrs,
        "lead_hours": scores.lead_hours.values.tolist(),
        "samples": scores.samples.values.tolist(),
        "units": dict(zip(scores.channel.values.tolist(), scores.units.values.tolist(), strict=True)),
    }
    for name in METRICS:
        if name in scores:
            dims = [dim for dim in ("source", *PARTS, "channel") if dim in scores[name].dims]
            document[name] = _nest(scores[name].transpose(*dims, "lead_hours"), dims)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    scores.to_netcdf(partial, engine="netcdf4")
    partial.replace(path.with_suffix(".nc"))
    storage.write_whole(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def _nest(field: xr.DataArray, dims: Sequence[str]) -> Any:
    if not dims:
        return [float(value) if np.isfinite(value) else None for value in field.values]
    names = field[dims[0]].values.tolist()
    return {str(name): _nest(field.isel({dims[0]: n}), dims[1:]) for n, name in enumerate(names)}


def _interval(difference: float, low: float, high: float, star: str) -> str:
    return f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]{star}" if np.isfinite(low) else f"{difference:+.1f}{star}"


def _texts(form: Callable[..., str], *values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.vectorize(form, otypes=[object])(*values)


def _format_table(what: str, table: pd.DataFrame) -> list[str]:
    """A table of rows by channel and columns by lead, as many leads abreast as fit."""
    width = sum(max(len(name), *map(len, table[name])) + 1 for name in table)
    abreast, leads, lines = max(1, (COLUMNS - 20) // width), table.index.unique(LEAD), []
    for first in range(0, len(leads), abreast):
        parts = {f"{lead} h": table.xs(lead, level=LEAD) for lead in leads[first : first + abreast]}
        part = pd.concat(parts, axis=1).rename_axis(index=[None, None], columns=[what, ""])
        there = (part != "nan").any(axis=1)  # the length of a wind's error has no sign
        if there.any():
            lines += ["", *part[there].to_string(sparsify=True).splitlines()]
    return lines


def digits(value: float) -> str:
    """A number in at most 7 characters, to three or four significant digits."""
    size = abs(value)
    if size >= 1000:
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 10 else f"{value:.3f}"
