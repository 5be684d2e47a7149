"""Maps of a forecast, the truth and the difference, and of what an archive holds, with matplotlib alone."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from weathermixer.archive.archive import Statistics
from weathermixer.fields.grid import Grid, area_weights
from weathermixer.fields.variables import Channel, group_by_variable
from weathermixer.verification.scores import READ_AS, digits

Field = Float[np.ndarray, "lat lon"]
# colours of the state by short name's variable; signed ones are shown symmetrically about zero
COLOURS = {"z": "viridis", "q": "YlGnBu", "tp6h": "YlGnBu", "t": "RdYlBu_r", "t2m": "RdYlBu_r"}
SIGNED = ("u", "v", "w", "u10", "v10")


def draw_forecast(
    forecast: Field,
    truth: Field | None,
    *,
    grid: Grid,
    channel: Channel,
    start: np.datetime64,
    lead_hours: int,
    land: Field | None = None,
) -> Figure:
    """Draws the forecast and, where there is a truth, the analysis on the same colours, and their difference.

    Fields are in SI units; the title gives the area-weighted RMSE. Coastlines are the 0.5 contour of a land-sea mask.

    >>> grid = weathermixer.Grid(90 - 11.25 * (np.arange(16) + 0.5), 11.25 * np.arange(32))
    >>> t850 = np.float32(260 + 30 * np.cos(np.deg2rad(grid.latitude))[:, None] + np.zeros(32))
    >>> about = dict(channel=weathermixer.Channel("temperature", 850), start=np.datetime64("2000-01-01"), lead_hours=24)
    >>> weathermixer.draw_forecast(t850 + 1, t850, grid=grid, **about).savefig("t850.png")
    """
    factor, units = READ_AS.get(channel.units, (1.0, channel.units))
    states = {"forecast": forecast * factor}
    title = f"{channel.short}, {_stamp(start)} + {lead_hours} h"
    if truth is not None:
        states["analysis"] = truth * factor
        error = states["forecast"] - states["analysis"]
        rmse = np.sqrt(np.mean(area_weights(grid.latitude)[:, None] * error**2))
        title += f" = {_stamp(start + np.timedelta64(lead_hours, 'h'))}, RMSE {digits(rmse).strip()} {units}"

    count = 1 if truth is None else 3
    figure = Figure(figsize=(4.4 * count + 0.4, 3.6), layout="constrained", dpi=140)
    axes = figure.subplots(1, count, squeeze=False, sharey=True)[0]
    short = Channel(channel.variable).short
    limits = _limits(list(states.values()), symmetric=short in SIGNED)
    colours = "RdBu_r" if short in SIGNED else COLOURS.get(short, "viridis")
    for axis, (name, field) in zip(axes, states.items()):
        image = _draw(axis, field, grid, limits, colours, land, title=name)
    figure.colorbar(image, ax=axes[:2], label=units, extend="both", location="bottom", shrink=0.6, aspect=40)
    if truth is not None:
        image = _draw(
            axes[2], error, grid, _limits([error], symmetric=True), "PuOr_r", land, title="forecast − analysis"
        )
        figure.colorbar(image, ax=axes[2], label=units, extend="both", location="bottom", shrink=0.8, aspect=30)
    figure.suptitle(title, fontsize=13)
    return figure


def draw_archive(
    fields: Float[np.ndarray, "map lat lon"],
    *,
    grid: Grid,
    channels: Sequence[Channel],
    time: np.datetime64,
    all_channels: Sequence[Channel],
    statistics: Statistics,
    land: Field | None = None,
) -> Figure:
    """Draws fields of some channels at one time, and below them the statistics of upper-air variables by level.

    A profile has the mean, one standard deviation to both sides and the range; a level that is out of line shows.
    """
    profiles = {
        variable: indices
        for variable, indices in group_by_variable(all_channels).items()
        if len(indices) > 1 and all_channels[indices[0]].level_hpa is not None
    }
    columns = min(len(fields), 3)
    heights = [3.1 * -(-len(fields) // columns)] + [3.6] * bool(profiles)
    figure = Figure(figsize=(4.5 * columns, sum(heights)), layout="constrained", dpi=110)
    top, *bottom = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    axes = top.subplots(-(-len(fields) // columns), columns, squeeze=False).ravel()
    for axis, field, channel in zip(axes, fields, channels):
        factor, units = READ_AS.get(channel.units, (1.0, channel.units))
        short = Channel(channel.variable).short
        limits = _limits([field * factor], symmetric=short in SIGNED)
        colours = "RdBu_r" if short in SIGNED else COLOURS.get(short, "viridis")
        image = _draw(axis, field * factor, grid, limits, colours, land, title=f"{channel.short}, {_stamp(time)}")
        top.colorbar(image, ax=axis, label=units, extend="both", shrink=0.8)
    for axis in axes[len(fields) :]:
        axis.set_axis_off()
    if profiles:
        for axis, indices in zip(bottom[0].subplots(1, len(profiles), squeeze=False)[0], profiles.values()):
            _draw_profile(axis, [all_channels[index] for index in indices], indices, statistics)
        bottom[0].supylabel("hPa", fontsize=9)
        bottom[0].legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


def _draw_profile(axis: Axes, channels: Sequence[Channel], indices: Sequence[int], statistics: Statistics) -> None:
    factor, units = READ_AS.get(channels[0].units, (1.0, channels[0].units))
    levels = np.array([channel.level_hpa for channel in channels], float)
    order = np.argsort(levels)
    chosen = np.asarray(indices)[order]
    mean, std, low, high = (
        factor * values[chosen] for values in (statistics.mean, statistics.std, statistics.minimum, statistics.maximum)
    )
    axis.fill_betweenx(levels[order], low, high, color="0.9", label="range")
    axis.fill_betweenx(levels[order], mean - std, mean + std, color="tab:blue", alpha=0.35, label="one std")
    axis.plot(mean, levels[order], "o-", color="tab:blue", markersize=3, label="mean")
    axis.set(yscale="log", xlabel=units, title=Channel(channels[0].variable).short)
    axis.set_ylim(levels.max() * 1.05, levels.min() / 1.05)
    axis.set_yticks(levels, [f"{level:g}" for level in levels], fontsize=7)
    axis.minorticks_off()
    axis.tick_params(axis="x", labelsize=7)


def _draw(axis: Axes, field: Field, grid: Grid, limits, colours: str, land: Field | None, *, title: str):
    # Greenwich in the middle: the columns east of 180 degrees come first
    longitude = (grid.longitude + 180) % 360 - 180
    order = np.argsort(longitude)
    image = axis.pcolormesh(
        longitude[order],
        grid.latitude,
        field[:, order],
        vmin=limits[0],
        vmax=limits[1],
        cmap=colours,
        shading="nearest",
    )
    image.set_rasterized(True)
    if land is not None:
        axis.contour(longitude[order], grid.latitude, land[:, order], levels=[0.5], colors="black", linewidths=0.7)
    west = longitude.min() - 180 / len(longitude)  # a cell's edge
    axis.set(aspect="equal", xlim=(west, west + 360), ylim=(-90, 90))
    axis.set(xticks=range(-120, 121, 60), yticks=range(-60, 61, 30))
    axis.set_xticklabels(["120°W", "60°W", "0°", "60°E", "120°E"])
    axis.set_yticklabels(["60°S", "30°S", "0°", "30°N", "60°N"])
    axis.tick_params(labelsize=8)
    axis.grid(color="black", alpha=0.15, linewidth=0.5)
    axis.set_title(title, fontsize=11)
    return image


def _limits(fields: list[Field], *, symmetric: bool) -> tuple[float, float]:
    """The range of the colours: all values but the outer half percent at both ends."""
    low, high = np.percentile(np.stack(fields), [0.5, 99.5])
    if symmetric:
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    # a constant field still needs a range
    return (float(low), float(high)) if high > low else (float(low) - 1, float(high) + 1)


def _stamp(time: np.datetime64) -> str:
    return f"{str(time.astype('datetime64[h]')).replace('T', ' ')} UTC"
