"""Scores for people and for programs: aligned tables, JSON and netCDF files, from the Dataset of `evaluate`."""

import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

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


def format_scores(scores: xr.Dataset) -> str:
    """A plain-text table: one row per channel, for each lead RMSE of all sources; bias and ACC of the forecasts follow.

    `ratio` is a single forecast's RMSE over the better baseline's: below 1 the forecast is worth its name. Of several
    forecasts the RMSE of each is compared with the first's: the difference in per cent and its 95 % interval (block
    bootstrap), with a * where the t-test says p < 0.05. Tables fit a terminal of 120 columns.

    >>> run = weathermixer.open_run("runs/quickstart")
    >>> scores = run.evaluate("dry.archive", period=("2000-01-17", "2000-01-18"), lead_hours=[6])
    >>> print("\\n".join(weathermixer.format_scores(scores).splitlines()[2:5]))
    RMSE             |         6 h (7 samples)
                     |   model persist  climat   ratio
    t850           K | ...
    """
    about = scores.attrs
    lines = [
        f"{about['mode']} forecasts from {about['first_start']} to {about['last_start']} UTC, "
        f"steps of {about['step_hours']} h; climatology: {about['climatology']}",
        *about["notes"].splitlines(),
    ]
    parts = [dim for dim in PARTS if dim in scores.rmse.dims]
    for index in np.ndindex(*(scores.sizes[dim] for dim in parts)):
        part = scores.isel(dict(zip(parts, index, strict=True)))
        for group in [dim for dim in parts if dim in GROUPS]:
            part = part.isel(time=getattr(part.time.dt, group).values == part[group].item())
            part["samples"] = part.counted.any("channel").sum("time")
        if parts:
            lines += ["", ", ".join(f"{dim} {part[dim].item()}" for dim in parts)]
        with np.errstate(divide="ignore", invalid="ignore"):  # a perfect baseline, or none
            lines += _tables(part)
    return "\n".join(line.rstrip() for line in lines)


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
    partial.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    partial.replace(path)


def _nest(field: xr.DataArray, dims: Sequence[str]) -> Any:
    if not dims:
        return [float(value) if np.isfinite(value) else None for value in field.values]
    names = field[dims[0]].values.tolist()
    return {str(name): _nest(field.isel({dims[0]: n}), dims[1:]) for n, name in enumerate(names)}


def _tables(scores: xr.Dataset) -> list[str]:
    names = scores.source.values.tolist()
    forecasts = [name for name in names if name not in BASELINES]
    scores = scores.transpose("source", ..., "lead_hours", "channel")
    factors = np.array([READ_AS.get(unit, (1.0, unit))[0] for unit in scores.units.values])
    rmse, bias = scores.rmse.values * factors, scores.bias.values * factors
    columns = [(SHORT.get(name, name), _texts(digits, x)) for name, x in zip(names, rmse)]
    if len(forecasts) == 1 and len(names) > 1:
        best = np.where(np.isfinite(rmse[1:]), rmse[1:], np.inf).min(axis=0)  # there may be no climatology
        columns.append(("ratio", _texts("{:.2f}".format, rmse[0] / best)))
    leads = scores.lead_hours.values
    titles = [f"{lead} h ({count} samples)" for lead, count in zip(leads, scores.samples.values)]
    lines = _blocks(scores, "RMSE", titles, columns)
    titles = [f"{lead} h" for lead in leads]
    signed = np.isfinite(bias).any(axis=tuple(range(bias.ndim - 1)))  # the length of a wind's error has no sign
    for number, name in enumerate(forecasts):
        columns = [("bias", _texts(digits, bias[number])), ("ACC", _texts("{:.3f}".format, scores.acc.values[number]))]
        columns = [(title, texts[..., signed]) for title, texts in columns]
        whose = "of the model" if len(forecasts) == 1 else f"of {name}"
        lines += _blocks(scores.isel(channel=signed), whose, titles, columns)
    for name in forecasts[1:]:
        found = compare(scores, name, forecasts[0]).transpose(..., "lead_hours", "channel")
        percent = [100 * found[key].values / scores.rmse.values[0] for key in ("difference", "low", "high")]
        stars = np.where(found.p_value.values < 0.05, "*", " ")
        lines += _blocks(
            scores, f"{name}, %", titles, [(f"RMSE to {forecasts[0]}".rjust(26), _texts(_interval, *percent, stars))]
        )
    return lines


def _interval(difference: float, low: float, high: float, star: str) -> str:
    return f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]{star}" if np.isfinite(low) else f"{difference:+.1f}{star}"


def _texts(form: Callable[..., str], *values: np.ndarray) -> np.ndarray:
    return np.array([form(*x) for x in zip(*map(np.ravel, values))], object).reshape(np.shape(values[0]))


def _blocks(
    scores: xr.Dataset, what: str, titles: Sequence[str], columns: Sequence[tuple[str, np.ndarray]]
) -> list[str]:
    """A table of rows by channel and columns (name, texts [lead, channel]) by lead, as many leads abreast as fit."""
    widths = [max(8, len(name) + 1) for name, _ in columns]
    abreast, lines = max(1, (COLUMNS - 16) // (sum(widths) + 2)), []
    for first in range(0, len(titles), abreast):
        leads = range(first, min(first + abreast, len(titles)))
        head = "".join(f"{name:>{width}}" for (name, _), width in zip(columns, widths))
        lines += ["", " |".join([f"{what:16}"] + [f"{titles[lead]:^{sum(widths)}}" for lead in leads])]
        lines.append(" |".join([f"{'':16}"] + [head] * len(leads)))
        for n, (short, unit) in enumerate(zip(scores.short.values, scores.units.values)):
            cells = ["".join(f"{x[lead, n]:>{width}}" for (_, x), width in zip(columns, widths)) for lead in leads]
            lines.append(" |".join([f"{short:8}{READ_AS.get(unit, (1, unit))[1]:>8}", *cells]))
    return lines


def digits(value: float) -> str:
    """A number in at most 7 characters, to three or four significant digits."""
    size = abs(value)
    if size >= 1000:
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 10 else f"{value:.3f}"
