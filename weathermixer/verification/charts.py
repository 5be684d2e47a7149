"""Charts of scores and of a place: scorecards, scores over lead, spectra, time series. Figures of matplotlib.

They read in print and by colour-blind eyes: lines differ by their marks too, and what is blue in a scorecard is better.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator, ScalarFormatter

from weathermixer.verification.metrics import METRICS, compute_metrics
from weathermixer.verification.scores import READ_AS
from weathermixer.verification.significance import compare

LEVEL = 0.05  # of significance
# forecasts by colours of Okabe and Ito's, for every kind of eye, and marks; baselines and analyses without
FORECASTS = cycler(color=["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"], marker=list("os^Dv"))
OTHERS = {
    "persistence": dict(color="0.45", marker="", linestyle=":"),
    "climatology": dict(color="0.45", marker="", linestyle="--"),
    "analyses": dict(color="black", marker="", linewidth=2.2),
}


def draw_scorecard(scores: xr.Dataset, one: str, other: str, *, metric: str = "rmse") -> Figure:
    """By how many per cent `one` is better (blue) or worse (red) than `other`: rows of levels, columns of leads.

    `scores` has both as sources, with statistics by start (significance.join_scores); of its regions each has a column.
    A cell is hatched where the difference may be chance: p >= 0.05 in the paired t-test.

    >>> run = weathermixer.open_run("runs/quickstart")
    >>> scores = run.evaluate("dry.archive", period=("2000-01-11", "2000-01-18"), lead_hours=[6, 24])
    >>> weathermixer.draw_scorecard(scores, "model", "persistence").savefig("scorecard.png")
    """
    found = compare(scores, one, other, metric=metric)
    percent = 100 * found.difference / np.abs(compute_metrics(scores)[metric].sel(source=other))
    cells = xr.Dataset({"percent": percent, "chance": ~(found.p_value < LEVEL)})
    cells = cells if "region" in cells.dims else cells.expand_dims(region=["global"])
    cells = cells.isel(channel=np.isfinite(cells.percent).any(("region", "lead_hours")).values).sortby("level_hpa")
    names = [name for name in dict.fromkeys(scores.variable.values) if name in cells.variable]
    groups = [cells.isel(channel=cells.variable.values == name) for name in names]
    rows, columns = [group.sizes["channel"] for group in groups], cells.region.values
    width = 1.6 + len(columns) * (0.4 + 0.42 * cells.sizes["lead_hours"])
    limit = float(np.nanpercentile(np.abs(cells.percent), 95)) or 1.0
    height = 1.8 + 0.21 * sum(rows) + 0.1 * len(rows)
    figure = Figure(figsize=(max(width, 4.5), height), layout="constrained", dpi=110)
    axes = figure.subplots(len(groups), len(columns), sharex=True, sharey="row", squeeze=False, height_ratios=rows)
    for number, region in enumerate(columns):
        for axis, group in zip(axes[:, number], groups):
            part = group.sel(region=region).transpose("channel", "lead_hours")
            image = _draw_cells(axis, part, limit, "RdBu" if metric.startswith("acc") else "RdBu_r")
        axes[0, number].set_title(region, fontsize=9)
        axes[-1, number].set_xlabel("lead / h", fontsize=9)
    starts = f"{scores.time.values.min():.13} to {scores.time.values.max():.13} UTC"
    label = f"{metric.upper()} of {one} against {other}, %\nforecasts from {starts}\n"
    label += f"blue is better; hatched may be chance, p ≥ {LEVEL}"
    bar = figure.colorbar(image, ax=axes, location="bottom", extend="both", shrink=0.7, aspect=40, pad=0.01)
    bar.set_label(label, fontsize=8)
    return figure


def _draw_cells(axis: Axes, cells: xr.Dataset, limit: float, colours: str):
    image = axis.pcolormesh(cells.percent, cmap=colours, vmin=-limit, vmax=limit, edgecolors="white", linewidth=0.5)
    for (row, column), value in np.ndenumerate(cells.percent.values):
        if cells.chance.values[row, column]:
            axis.add_patch(Rectangle((column, row), 1, 1, fill=False, hatch="/////", edgecolor="0.4", linewidth=0))
        if np.isfinite(value):
            ink, behind = "white" if abs(value) > 0.7 * limit else "black", image.cmap(image.norm(value))
            text = f"{value:+.0f}" if abs(value) >= 10 else f"{value:+.1f}"
            options = dict(fontsize=6, ha="center", va="center", color=ink)
            axis.text(column + 0.5, row + 0.5, text, bbox=dict(fc=behind, ec="none", pad=0.6), **options)
    axis.set_yticks(np.arange(cells.sizes["channel"]) + 0.5, cells.short.values)
    axis.set_xticks(np.arange(cells.sizes["lead_hours"]) + 0.5, cells.lead_hours.values)
    axis.tick_params(length=0, labelsize=7)
    axis.set_ylim(cells.sizes["channel"], 0)
    return image


def draw_scores(scores: xr.Dataset, *, metric: str = "rmse", channels: Sequence[str] | None = None) -> Figure:
    """A metric over lead time, a panel for each channel (None: some) and a line for each source.

    >>> run = weathermixer.open_run("runs/quickstart")
    >>> scores = run.evaluate("dry.archive", period=("2000-01-17", "2000-01-18"), lead_hours=[6, 12])
    >>> weathermixer.draw_scores(scores, channels=["temperature_850"]).savefig("scores.png")
    """
    other = [dim for dim in scores[metric].dims if dim != "channel"]
    names = channels or choose_channels(scores.isel(channel=np.isfinite(scores[metric]).any(other).values))
    figure, axes = make_panels(len(names), height=2.4, sharex=True)
    for axis, name in zip(axes, names):
        values = scores[metric].sel(channel=name)
        factor, units = READ_AS.get(values.units.item(), (1.0, values.units.item()))
        factor, units = (factor, f" in {units}") if METRICS[metric].has_units else (1.0, "")
        for source in scores.source.values.tolist():
            if np.isfinite(values.sel(source=source)).any():
                axis.plot(scores.lead_hours, factor * values.sel(source=source), **line_style(source))
        axis.set_title(values.short.item(), fontsize=10)
        axis.set_ylabel(metric.upper() + units, fontsize=8)
        axis.set_xticks(scores.lead_hours.values)
    return _finish(figure, axes[: len(names)], "lead / h")


def draw_spectra(scores: xr.Dataset, *, channel: str, lead_hours: int) -> Figure:
    """Zonal power spectra of the sources and of the analyses at a lead, a panel for each latitude band.

    What falls off earlier than the analyses is smoother than the weather. `scores` have spectra (evaluate's spectra).
    """
    power = scores.spectrum.sel(channel=channel, lead_hours=lead_hours)
    truth = scores.spectrum_truth.sel(channel=channel, lead_hours=lead_hours).expand_dims(source=["analyses"])
    power = xr.concat([truth, power], "source", coords="minimal", compat="override").isel(wavenumber=slice(1, None))
    factor, units = READ_AS.get(power.units.item(), (1.0, power.units.item()))
    figure, axes = make_panels(power.sizes["band"], height=2.7, sharey=True)
    for axis, band in zip(axes, power.band.values):
        for source in power.source.values.tolist():
            values = factor**2 * power.sel(source=source, band=band)
            axis.loglog(power.wavenumber, values, **line_style(source) | {"markersize": 0})
        axis.set_title(band, fontsize=10)
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticks([k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500) if k <= power.wavenumber.max()])
    axes[0].set_ylabel(f"power of {power.short.item()} at {lead_hours} h in ({units})²", fontsize=8)
    return _finish(figure, axes, "zonal wavenumber")


def draw_series(fields: Mapping[str, xr.DataArray], *, latitude: float, longitude: float, units: str) -> Figure:
    """Fields [time, latitude, longitude], such as a forecast and the analyses, at the grid point next to a place."""
    figure, axes = make_panels(1, height=2.2, width=6.6)
    factor, shown = READ_AS.get(units, (1.0, units))
    for name, field in fields.items():
        field = field.sel(latitude=latitude, longitude=longitude % 360, method="nearest")
        axes[0].plot(field.time, factor * field, **line_style(name))
    north, east = field.latitude.item(), (field.longitude.item() + 180) % 360 - 180
    place = f"{abs(north):.4g}°{'NS'[north < 0]}, {abs(east):.4g}°{'EW'[east < 0]}"
    axes[0].set_ylabel(f"{field.name} in {shown}", fontsize=8)
    axes[0].xaxis.set_major_locator(dates := AutoDateLocator(maxticks=8))
    axes[0].xaxis.set_major_formatter(ConciseDateFormatter(dates))
    return _finish(figure, axes, f"time (UTC) at {place}")


def choose_channels(scores: xr.Dataset, count: int = 6) -> list[str]:
    """Channels that stand for all: of each variable the one on or next to 500 hPa, the first `count`."""
    distance = np.abs(scores.level_hpa.fillna(500).values - 500)
    nearest = {}
    for name, variable, far in zip(scores.channel.values.tolist(), scores.variable.values, distance):
        nearest[variable] = min(nearest.get(variable, (far, name)), (far, name))
    return [name for _, name in nearest.values()][:count]


def line_style(source: str) -> dict[str, Any]:
    """How a source's line is drawn; a forecast's colour and mark follow from its place among them."""
    return dict(linewidth=1.3, markersize=3.5, label=source) | OTHERS.get(source, {})


def make_panels(count: int, *, height: float, width: float = 3.3, **options) -> tuple[Figure, list[Axes]]:
    """At least `count` axes, three abreast; those that are left over are off."""
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows + 0.5), layout="constrained", dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    for number, axis in enumerate(axes):
        axis.set_prop_cycle(FORECASTS)
        axis.set_visible(number < count)
    return figure, axes


def _finish(figure: Figure, axes: Sequence[Axes], label: str) -> Figure:
    for axis in axes:
        axis.grid(alpha=0.25, linewidth=0.5)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(label, fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=8, frameon=False)
    return figure
