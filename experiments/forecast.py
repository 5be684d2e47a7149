"""Makes forecasts with a trained run, and a map of one beside the analysis.

  python -m experiments.forecast --workdir=DIR --start=2000-12-01T00 [--hours=120] [--output=FILE] [--plot=MAP.png]

The file, a .zarr store or a .nc file, has the form of WeatherBench 2, in SI units: dimensions time (the start),
prediction_timedelta, level, latitude, longitude. xarray opens both. It appears under its name when it is complete.

Examples:
  # ten days from two analyses, as netCDF
  python -m experiments.forecast --workdir=runs/era5 --start=2018-01-01T00,2018-01-01T12 --hours=240 --output=two.nc
  # a map of one channel three days ahead
  python -m experiments.forecast --workdir=runs/era5 --start=2018-08-23T00 --hours=72 --plot=z.png --plot_hours=72 \\
    --channel=geopotential_500
"""

import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr

from experiments import command_line
from experiments.evaluate import add_run_options, open_run
from weathermixer.archive.archive import Archive
from weathermixer.archive.sampling import find_times, in_period
from weathermixer.archive.standardization import to_physical
from weathermixer.forecasting.forecasts import gather
from weathermixer.parallel import distributed
from weathermixer.parallel.mesh import use_mesh, ways
from weathermixer.prepare.sources import Source
from weathermixer.runs.run import Run
from weathermixer.verification.figures import draw_forecast

FORECAST_FILE = "forecast.zarr"
PLOT_FILE = "forecast.png"
# what a forecaster looks at first, where the run has it
DRAWN_FIRST = "geopotential_500"


def write(
    run: Run,
    data: str | None = None,
    *,
    starts: Sequence[np.datetime64] | np.ndarray | None = None,
    output: str | os.PathLike | None = None,
    plot: str | os.PathLike | None = None,
    plot_hours: int = 24,
    channel: str | None = None,
    **options: Any,
) -> None:
    """Writes forecasts (`options` are Run.forecast's) and, where `plot` names a file, a map of one beside the analysis.

    What is None is taken from the run: its archive, from which the first time of its test period, and forecast.zarr in
    the workdir. Raises ValueError, before the forecast runs, for a channel that is not predicted.
    """
    names = run.reference.channel_set.names
    channel = channel or (DRAWN_FIRST if DRAWN_FIRST in names else names[0])
    if channel not in names:
        raise ValueError(f"channel={channel!r} is not predicted; the run has {list(names)}")
    data, output = run.open_data(data), output or run.path / FORECAST_FILE
    starts = _first_of_period(data, run.settings.data.test) if starts is None else starts
    first = jax.process_index() == 0
    forecasts = run.forecast(data, starts=starts, output=output, **options, progress=first and sys.stderr.isatty())
    if plot:
        _draw(run, data, forecasts.isel(time=0), pathlib.Path(plot), names.index(channel), plot_hours)
    if first:
        a_map = f", a map in {plot}" if plot else ""
        print(f"{forecasts.sizes['time']} forecast(s) of {_hours(forecasts)[-1]} h in {output}{a_map}", flush=True)


def _first_of_period(data: Archive | Source, period: tuple[str, str]) -> np.ndarray:
    found = data.times[in_period(data.times, period)]
    if not len(found):
        name = data.path if isinstance(data, Archive) else data.name
        raise ValueError(f"{name} has no time between {period[0]} and {period[1]} to start from: give --start")
    return found[:1]


def _hours(forecasts: xr.Dataset) -> np.ndarray:
    return forecasts.prediction_timedelta.values // np.timedelta64(1, "h")


def _draw(
    run: Run, data: Archive | Source, forecast: xr.Dataset, plot: pathlib.Path, index: int, plot_hours: int
) -> None:
    """Draws a channel of a forecast at the lead next to `plot_hours`, beside the analysis where the data has it."""
    channel, hours = run.reference.channel_set.dynamic[index], _hours(forecast)
    lead = int(np.abs(hours - plot_hours).argmin())
    field = forecast[channel.variable].isel(prediction_timedelta=lead)
    field = field if channel.level_hpa is None else field.sel(level=channel.level_hpa)
    frames, start = run.open_frames(data), forecast.time.values
    valid = find_times(frames.times, np.atleast_1d(start + forecast.prediction_timedelta.values[lead]))
    truth = None
    if valid[0] >= 0:
        with use_mesh(run.mesh):
            analyses = frames.read(np.repeat(valid, ways(run.mesh, "batch")))
            truth = gather(to_physical(analyses, frames.standardization))[0, index]
    if jax.process_index() == 0:
        figure = draw_forecast(
            field.values,
            truth,
            grid=run.reference.grid,
            channel=channel,
            start=start,
            lead_hours=int(hours[lead]),
            land=run.reference.static.get("land_sea_mask"),
        )
        plot.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(plot)


def make_parser() -> command_line.Parser:
    """The command line's options."""
    parser = command_line.make_parser("experiments.forecast", __doc__)
    add_run_options(parser)
    add, hours = parser.add_argument, command_line.integer(1)
    about = "times to start from; default: first of the test period"
    add("--start", type=command_line.times, metavar="TIME,...", help=about)
    add("--hours", type=hours, metavar="H", help="length of the forecast; default: the config's")
    add("--output", metavar="FILE", help=f"a .zarr or .nc file; default: {FORECAST_FILE} in DIR")
    add("--plot", metavar="FILE", help="image of a map of one channel; default: none is drawn")
    add("--plot_hours", type=hours, default=24, metavar="H", help="lead that is drawn; default: 24")
    add("--channel", metavar="NAME", help=f"channel that is drawn; default: {DRAWN_FIRST} or the first")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    distributed.initialize()
    write(
        open_run(options),
        options.data,
        starts=options.start,
        hours=options.hours,
        mode=options.mode,
        output=options.output,
        plot=options.plot,
        plot_hours=options.plot_hours,
        channel=options.channel,
    )


if __name__ == "__main__":
    command_line.run(main)
