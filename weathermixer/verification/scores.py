"""Scores for people and for programs: an aligned table and a JSON file, from the Dataset that `evaluate` returns."""

import json
import os
import pathlib

import numpy as np
import xarray as xr

# what a forecaster reads, where it is not the archive's SI unit: (factor, units)
READ_AS = {
    "kg kg**-1": (1000.0, "g/kg"),
    "m s**-1": (1.0, "m/s"),
    "m**2 s**-2": (1.0, "m2/s2"),
    "Pa s**-1": (1.0, "Pa/s"),
}
LEADS_PER_BLOCK = 3


def format_scores(scores: xr.Dataset) -> str:
    """A plain-text table: one row per channel, for each lead RMSE of model, persistence, climatology, and a ratio.

    `ratio` is the model's RMSE over the better baseline's: below 1 the forecast is worth its name. The model's bias and
    ACC follow. Leads are set three abreast, so that the table fits a terminal of 120 columns.

    >>> run = weathermixer.open_run("runs/quickstart")
    >>> scores = run.evaluate("dry.archive", period=("2000-01-17", "2000-01-18"), lead_hours=[6])
    >>> print("\\n".join(weathermixer.format_scores(scores).splitlines()[2:5]))
    RMSE             |         6 h (7 samples)
                     |   model persist  climat   ratio
    t850           K | ...
    """
    attributes = scores.attrs
    lines = [
        f"{attributes['mode']} forecasts from {attributes['first_start']} to {attributes['last_start']} UTC, "
        f"steps of {attributes['step_hours']} h; climatology: {attributes['climatology']}"
    ]
    leads = scores.lead_hours.values
    for first in range(0, len(leads), LEADS_PER_BLOCK):
        block = scores.isel(lead_hours=slice(first, first + LEADS_PER_BLOCK))
        lines += ["", *_rmse_block(block)]
    for first in range(0, len(leads), 2 * LEADS_PER_BLOCK):
        block = scores.isel(lead_hours=slice(first, first + 2 * LEADS_PER_BLOCK)).sel(source="model")
        lines += ["", *_bias_block(block)]
    return "\n".join(line.rstrip() for line in lines)


def write_scores(scores: xr.Dataset, path: str | os.PathLike) -> None:
    """Writes the scores as JSON, whole or not at all: {metric: {source: {channel: [value per lead]}}} and metadata.

    An undefined score (the ACC of the climatology itself) is null.
    """

    def values(field: xr.DataArray) -> list[float | None]:
        return [float(value) if np.isfinite(value) else None for value in field.values]

    def by_channel(field: xr.DataArray) -> dict[str, list[float | None]]:
        return {name: values(field.sel(channel=name)) for name in field.channel.values.tolist()}

    metrics = [name for name in scores.data_vars if "source" in scores[name].dims]
    document = {
        **scores.attrs,
        "lead_hours": scores.lead_hours.values.tolist(),
        "samples": scores.samples.values.tolist(),
        "units": dict(zip(scores.channel.values.tolist(), scores.units.values.tolist(), strict=True)),
        **{
            name: {source: by_channel(scores[name].sel(source=source)) for source in scores.source.values.tolist()}
            for name in metrics
        },
    }
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    partial.replace(path)


def _rmse_block(block: xr.Dataset) -> list[str]:
    titles = [f"{'RMSE':16}"] + [
        f"{f'{lead} h ({count} samples)':^32}" for lead, count in zip(block.lead_hours.values, block.samples.values)
    ]
    heads = [f"{'':16}"] + [f"{'model':>8}{'persist':>8}{'climat':>8}{'ratio':>8}"] * block.sizes["lead_hours"]
    lines = [" |".join(titles), " |".join(heads)]
    for channel in range(block.sizes["channel"]):
        row = block.isel(channel=channel)
        factor, name = _name(row)
        cells = [f"{name:16}"]
        for lead in range(block.sizes["lead_hours"]):
            errors = row.rmse.isel(lead_hours=lead).values * factor
            ratio = errors[0] / np.nanmin(errors[1:])  # there may be no climatology
            cells.append("".join(f"{digits(value):>8}" for value in errors) + f"{ratio:8.2f}")
        lines.append(" |".join(cells))
    return lines


def _bias_block(block: xr.Dataset) -> list[str]:
    lines = [
        " |".join([f"{'of the model':16}"] + [f"{f'{lead} h':^16}" for lead in block.lead_hours.values]),
        " |".join([f"{'':16}"] + [f"{'bias':>8}{'ACC':>8}"] * block.sizes["lead_hours"]),
    ]
    for channel in range(block.sizes["channel"]):
        row = block.isel(channel=channel)
        factor, name = _name(row)
        pairs = zip(row.bias.values * factor, row.acc.values)
        lines.append(" |".join([f"{name:16}"] + [f"{digits(bias):>8}{acc:8.3f}" for bias, acc in pairs]))
    return lines


def _name(row: xr.Dataset) -> tuple[float, str]:
    factor, units = READ_AS.get(row.units.item(), (1.0, row.units.item()))
    return factor, f"{row.short.item():8}{units:>8}"


def digits(value: float) -> str:
    """A number in at most 7 characters, to three or four significant digits."""
    size = abs(value)
    if size >= 1000:
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 10 else f"{value:.3f}"
