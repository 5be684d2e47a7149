"""Maps of a forecast, the truth and the difference, of errors by lead, moving ones, and of what an archive holds."""

import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from weathermixer.archive.archive import Archive, Statistics
from weathermixer.archive.sampling import spread
from weathermixer.fields.grid import Grid, area_weights
from weathermixer.fields.variables import Channel, group_by_variable
from weathermixer.verification.charts import make_panels
from weathermixer.verification.scores import READ_AS, digits

Field = Float[np.ndarray, "lat lon"]
# colours of the state by short name's variable; signed ones are shown symmetrically about zero
COLOURS = {"z": "viridis", "q": "YlGnBu", "tp6h": "YlGnBu", "t": "RdYlBu_r", "t2m": "RdYlBu_r"}
MAPS = 6  # of an archive
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

    Fields are in SI units; the title gives the area-weighted RMSE. Where there is land, coastlines are Natural Earth's
    if cartopy is installed and has them, else the 0.5 contour of the land-sea mask.

    >>> grid = weathermixer.Grid(90 - 11.25 * (np.arange(16) + 0.5), 11.25 * np.arange(32))
    >>> t850 = np.float32(260 + 30 * np.cos(np.deg2rad(grid.latitude))[:, None] + np.zeros(32))
    >>> about = dict(channel=weathermixer.Channel("temperature", 850), start=np.datetime64("2000-01-01"), lead_hours=24)
    >>> weathermixer.draw_forecast(t850 + 1, t850, grid=grid, **about).savefig("t850.png")
    """
    factor, units, colours, symmetric = _look(channel)
    states = {"forecast": forecast * factor} | ({} if truth is None else {"analysis": truth * factor})
    figure, axes = make_panels(1 if truth is None else 3, width=4.4, height=3.1, sharey=True)
    limits, title = _limits(list(states.values()), symmetric=symmetric), f"{channel.short}, {_stamp(start)}"
    for axis, (name, field) in zip(axes, states.items()):
        image = _draw(axis, field, grid, limits, colours, land, title=name)
    _add_bar(image, axes[:2], units)
    title += f" + {lead_hours} h"
    if truth is not None:
        error = states["forecast"] - states["analysis"]
        rmse = digits(_globe_rmse(error, grid))
        title += f" = {_stamp(start + np.timedelta64(lead_hours, 'h'))}, RMSE {rmse} {units}"
        limits = _limits([error], symmetric=True)
        _add_bar(_draw(axes[2], error, grid, limits, "PuOr_r", land, title="forecast − analysis"), axes[2], units)
    figure.suptitle(title, fontsize=13)
    return figure


def draw_errors(
    errors: Float[np.ndarray, "lead lat lon"],
    *,
    grid: Grid,
    channel: Channel,
    lead_hours: Sequence[int],
    land: Field | None = None,
) -> Figure:
    """Maps of errors by lead, such as the RMSE over forecasts, on the same colours; titles have the globe's RMSE."""
    factor, units, *_ = _look(channel)
    figure, axes = make_panels(len(errors), width=3.6, height=2.4, sharex=True, sharey=True)
    limits = 0.0, _limits([errors * factor], symmetric=False)[1]
    for axis, field, lead in zip(axes, errors * factor, lead_hours):
        title = f"{lead} h: {digits(_globe_rmse(field, grid))}"
        image = _draw(axis, field, grid, limits, "YlOrBr", land, title=title)
    _add_bar(image, axes, f"RMSE of {channel.short} in {units}", extend="max")
    return figure


def save_animation(
    path: str | os.PathLike,
    forecast: Float[np.ndarray, "lead lat lon"],
    truth: Float[np.ndarray, "lead lat lon"] | None,
    *,
    grid: Grid,
    channel: Channel,
    start: np.datetime64,
    lead_hours: Sequence[int],
    land: Field | None = None,
) -> None:
    """Writes a GIF that goes through the leads of a forecast, beside the analyses (NaN where there is none)."""
    factor, units, colours, symmetric = _look(channel)
    states = {"forecast": forecast * factor} | ({} if truth is None else {"analysis": truth * factor})
    limits = _limits(list(states.values()), symmetric=symmetric)
    figure, axes = make_panels(len(states), width=4.4, height=3.1, sharey=True)
    images = [_draw(a, x[0], grid, limits, colours, land, title=name) for a, (name, x) in zip(axes, states.items())]
    _add_bar(images[0], axes, units)
    writer = PillowWriter(fps=4)
    with writer.saving(figure, os.fspath(path), dpi=80):
        for number, lead in enumerate(lead_hours):
            for image, fields in zip(images, states.values()):
                image.set_array(_from_west(fields[number], grid)[1])
            valid = _stamp(start + np.timedelta64(lead, "h"))
            figure.suptitle(f"{channel.short}, {_stamp(start)} + {lead} h = {valid}", fontsize=11)
            if not number:
                figure.draw_without_rendering()  # room is made for a title when it is drawn again
            writer.grab_frame()


def draw_archive(archive: Archive) -> Figure:
    """Draws fields of some channels in the middle of the record, then the statistics of upper-air variables by level.

    A profile has the mean, one standard deviation to both sides and the range; a level that is out of line shows.
    """
    channels, middle = archive.channels, len(archive.times) // 2
    chosen = spread(np.arange(len(channels)), MAPS).tolist()
    profiles = [some for some in group_by_variable(channels).values() if len(some) > 1 and channels[some[0]].level_hpa]
    figure, axes = make_panels(len(chosen) + len(profiles), width=4.5, height=2.75)  # a map's: what is more is white
    figure.suptitle(pathlib.PurePath(archive.path).name, fontsize=13)
    for axis, index in zip(axes, chosen):
        factor, units, colours, symmetric = _look(channels[index])
        field = archive.store[middle, index].read().result().astype(np.float64)
        field = factor * (field * archive.scale[index] + archive.offset[index])
        title, land = f"{channels[index].short}, {_stamp(archive.times[middle])}", archive.static.get("land_sea_mask")
        limits = _limits([field], symmetric=symmetric)
        _add_bar(_draw(axis, field, archive.grid, limits, colours, land, title=title), axis, units)
    for axis, indices in zip(axes[len(chosen) :], profiles):
        _draw_profile(axis, channels, indices, archive.statistics)
    return figure


def _draw_profile(axis: Axes, channels: Sequence[Channel], indices: Sequence[int], statistics: Statistics) -> None:
    chosen = sorted(indices, key=lambda index: channels[index].level_hpa)
    factor, units, *_ = _look(channels[chosen[0]])
    levels = np.array([channels[index].level_hpa for index in chosen], float)
    values = (statistics.mean, statistics.std, statistics.minimum, statistics.maximum)
    mean, std, low, high = (factor * value[chosen] for value in values)
    axis.fill_betweenx(levels, low, high, color="0.9", label="range")
    axis.fill_betweenx(levels, mean - std, mean + std, color="tab:blue", alpha=0.35, label="one std")
    axis.plot(mean, levels, "o-", color="tab:blue", markersize=3, label="mean")
    axis.set(yscale="log", xlabel=units, ylabel="hPa", title=Channel(channels[chosen[0]].variable).short)
    axis.set_ylim(levels.max() * 1.05, levels.min() / 1.05)
    axis.set_yticks(levels, [f"{level:g}" for level in levels])
    axis.minorticks_off()
    axis.locator_params(axis="x", nbins=4)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=7, frameon=False)


def _look(channel: Channel) -> tuple[float, str, str, bool]:
    """(factor, units, colours, whether they are symmetric about zero) of a channel's state."""
    short = Channel(channel.variable).short
    colours = "RdBu_r" if short in SIGNED else COLOURS.get(short, "viridis")
    return *READ_AS.get(channel.units, (1.0, channel.units.replace("**", ""))), colours, short in SIGNED


def _from_west(field: Field, grid: Grid) -> tuple[Float[np.ndarray, " lon"], Field]:
    """Longitudes from -180 and a field's columns in their order: Greenwich is in the middle."""
    longitude = (grid.longitude + 180) % 360 - 180
    order = np.argsort(longitude)
    return longitude[order], field[:, order]


def _draw(axis: Axes, field: Field, grid: Grid, limits, colours: str, land: Field | None, *, title: str):
    longitude, field = _from_west(field, grid)
    low, high = limits
    options = dict(vmin=low, vmax=high, cmap=colours, shading="nearest", rasterized=True)
    image = axis.pcolormesh(longitude, grid.latitude, field, **options)
    if land is not None and (coasts := _natural_earth()):
        axis.add_collection(LineCollection(coasts, colors="black", linewidths=0.7), autolim=False)
    elif land is not None:  # with a column more on either side, so that lines reach the edges
        around = np.pad(longitude, 1, "wrap") + 360 * np.pad(np.zeros_like(longitude), 1, constant_values=(-1, 1))
        cyclic = np.pad(_from_west(land, grid)[1], ((0, 0), (1, 1)), "wrap")
        axis.contour(around, grid.latitude, cyclic, levels=[0.5], colors="black", linewidths=0.7)
    west = longitude.min() - 180 / len(longitude)  # a cell's edge
    axis.set(aspect="equal", xlim=(west, west + 360), ylim=(-90, 90))
    axis.set_xticks(range(-120, 121, 60), ["120°W", "60°W", "0°", "60°E", "120°E"])
    axis.set_yticks(range(-60, 61, 30), ["60°S", "30°S", "0°", "30°N", "60°N"])
    axis.tick_params(labelsize=8)
    axis.grid(color="black", alpha=0.15, linewidth=0.5)
    axis.set_title(title, fontsize=11)
    return image


@functools.cache
def _natural_earth() -> list[Float[np.ndarray, "point 2"]]:
    """Coastlines in degrees, of files that cartopy has on this machine; none where it, or they, are not there."""
    try:
        import cartopy
        from cartopy.io import Downloader, shapereader
    except ImportError:
        return []
    words = {"config": cartopy.config, "category": "physical", "name": "coastline", "resolution": "110m"}
    known = Downloader.from_config(("shapefiles", "natural_earth", "110m", "physical", "coastline"))
    for path in (known.pre_downloaded_path(words), known.target_path(words)):  # its path() would download
        if path is not None and path.exists():
            lines = shapereader.Reader(path).geometries()
            return [np.array(part.coords)[:, :2] for line in lines for part in getattr(line, "geoms", [line])]
    return []


def _add_bar(image, axes: Axes | Sequence[Axes], label: str, *, extend: str = "both") -> None:
    options = dict(location="bottom", shrink=0.7, aspect=35, ticks=MaxNLocator(4))
    image.figure.colorbar(image, ax=axes, label=label, extend=extend, **options).ax.tick_params(labelsize=8)


def _globe_rmse(error: Field, grid: Grid) -> float:
    return np.sqrt(np.mean(area_weights(grid.latitude)[:, None] * error**2))


def _limits(fields: Sequence[Float[np.ndarray, "*n lat lon"]], *, symmetric: bool) -> tuple[float, float]:
    """The range of the colours: all values but the outer half percent at both ends."""
    low, high = np.nanpercentile(np.stack(fields), [0.5, 99.5])
    if symmetric:
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    # a constant field still needs a range
    return (float(low), float(high)) if high > low else (float(low) - 1, float(high) + 1)


def _stamp(time: np.datetime64) -> str:
    return f"{str(time.astype('datetime64[h]')).replace('T', ' ')} UTC"
