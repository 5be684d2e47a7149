"""Makes forecasts with a trained run, and a map of one beside the analysis.

  python -m experiments.forecast RUN [--data=DATA] [--start=TIME,...] [--hours=120] [--output=FILE] [--plot=MAP.png]

RUN is a run's workdir, or an export of it. DATA holds the analyses: an archive, or any file that experiments.prepare
reads (Zarr, netCDF, GRIB, local or remote), of one time or many; output-only channels need not be there. The output, a
.zarr store or a .nc file, has the form of WeatherBench 2, in SI units: dimensions time (the start),
prediction_timedelta, level, latitude, longitude; .grib2 is written too. It appears under its name when it is complete;
the same command goes on where it was stopped. Ensembles (--members) have a dimension number after time; a model that
was trained without noise needs other starts for them: perturbed or lagged (--perturbation, --perturbation-kind).

Examples:
  # from an analysis in a file, on another grid than the run's
  python -m experiments.forecast runs/era5 --data=gfs.t00z.grib2 --regrid=conservative --output=today.zarr
  # ten days from two analyses, as netCDF
  python -m experiments.forecast runs/era5 --start=2018-01-01T00,2018-01-01T12 --hours=240 --output=two.nc
  # an ensemble of ten, from starts that are perturbed by a fiftieth of each channel's standard deviation
  python -m experiments.forecast runs/era5 --start=2018-01-01T00 --members=10 --perturbation=0.02 --output=ten.zarr
  # by differences of the data's analyses; from five analyses one after the other, valid at the same times
  python -m experiments.forecast runs/era5 --members=10 --perturbation=0.1 --perturbation-kind=analyses
  python -m experiments.forecast runs/era5 --members=5 --perturbation-kind=lagged
  # a map of one channel three days ahead; z.gif goes through all leads
  python -m experiments.forecast runs/era5 --start=2018-08-23T00 --hours=72 --plot=z.png --plot-hours=72 \\
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

from experiments import command_line, ends
from experiments.evaluate import add_run_options, open_run
from weathermixer import Frames, Run
from weathermixer.archive.sampling import find_times, in_period
from weathermixer.archive.standardization import to_physical
from weathermixer.forecasting.ensembles import PERTURBATIONS
from weathermixer.forecasting.forecasts import gather
from weathermixer.parallel import distributed
from weathermixer.parallel.mesh import use_mesh, ways
from weathermixer.runs.data import Data

FORECAST_FILE = "forecast.zarr"
PLOT_FILE = "forecast.png"
# options of `write`, as they are called there
WRITTEN_WITH = (
    "starts", "analysis", "regrid", "hours", "mode", "members", "perturbation", "perturbation_kind", "correlation_km",
    "seed", "output", "plot", "plot_hours", "channel",
)  # fmt: skip
# what a forecaster looks at first, where the run has it
DRAWN_FIRST = "geopotential_500"


def write(
    run: Run,
    data: Data | None = None,
    *,
    starts: Sequence[np.datetime64] | np.ndarray | None = None,
    output: str | os.PathLike | None = None,
    plot: str | os.PathLike | None = None,
    plot_hours: int = 24,
    channel: str | None = None,
    regrid: str | None = None,
    **options: Any,
) -> None:
    """Writes forecasts (`options` are Run.forecast's) and, where `plot` names a file, a map of one beside the analysis.

    What is None is taken from the run: its archive and of that the first time of its test period, forecast.zarr in its
    folder; other data has one time, or `starts` say which. Raises ValueError, before the forecast runs, for data with
    many times and for a channel that is not predicted.
    """
    names = run.reference.channel_set.names
    channel = channel or (DRAWN_FIRST if DRAWN_FIRST in names else names[0])
    if channel not in names:
        raise ValueError(f"channel={channel!r} is not predicted; the run has {list(names)}")
    output, frames = output or run.path / FORECAST_FILE, run.open_frames(data, regrid=regrid)
    if starts is None:
        starts = _choose_start(run, frames, own=data is None)
    first = jax.process_index() == 0
    options |= {"starts": starts, "output": output, "regrid": regrid, "progress": first and sys.stderr.isatty()}
    forecasts = run.forecast(data, **options)
    hours = forecasts.prediction_timedelta.values // np.timedelta64(1, "h")
    if plot:
        plot, one = pathlib.Path(plot), forecasts.isel(time=0, number=0, missing_dims="ignore")
        leads = np.arange(len(hours)) if plot.suffix == ".gif" else [int(np.abs(hours - plot_hours).argmin())]
        _draw(run, frames, one.isel(prediction_timedelta=leads), plot, names.index(channel), hours[leads].tolist())
    if first:
        a_map = f", a map in {plot}" if plot else ""
        members = f" of {forecasts.sizes['number']} members" if "number" in forecasts.sizes else ""
        about = f"{forecasts.sizes['time']} forecast(s){members} of {hours[-1]} h"
        print(f"{about} in {output}{a_map}", flush=True)


def _choose_start(run: Run, frames: Frames, *, own: bool) -> np.ndarray:
    """The only time that can be started from; of the run's own archive the first one of its test period."""
    starts = frames.times[run.find_starts(frames)]
    if own:
        starts = starts[in_period(starts, run.settings.data.test)][:1]
    if len(starts) != 1:
        some = f", {starts[0]:.13} to {starts[-1]:.13}" if len(starts) else ""
        within = " between {} and {}".format(*run.settings.data.test) if own else ""
        raise ValueError(f"{frames.name} has {len(starts)} times{within} to start from{some}: give --start")
    return starts


def read_pair(run: Run, frames: Frames, forecast: xr.Dataset, index: int) -> tuple[xr.DataArray, xr.DataArray]:
    """A channel of one forecast, and its analyses: by valid time, in SI units, NaN at times that the data lacks."""
    channel, times = run.reference.channel_set.dynamic[index], forecast.time + forecast.prediction_timedelta
    field = forecast[channel.variable].drop_vars("time").rename(prediction_timedelta="time")
    field = field.assign_coords(time=times.values).sel(
        {} if channel.level_hpa is None else {"level": channel.level_hpa}
    )
    truth, found = field.copy(data=np.full(field.shape, np.nan, np.float32)), find_times(frames.times, times.values)
    with use_mesh(run.mesh):
        for number in np.flatnonzero(found >= 0):
            analyses = frames.read(np.repeat(found[number], ways(run.mesh, "batch")))
            truth[number] = gather(to_physical(analyses, frames.standardization))[0, index]
    return field, truth


def _draw(run: Run, frames: Frames, forecast: xr.Dataset, plot: pathlib.Path, index: int, hours: list[int]) -> None:
    """Draws a channel of a forecast beside the analyses, at leads of so many hours: as a GIF, or the only one."""
    fields, truth = (x.values for x in read_pair(run, frames, forecast, index))
    truth = truth if np.isfinite(truth).any() else None
    if jax.process_index():
        return
    from weathermixer.verification.figures import draw_forecast, save_animation  # here: matplotlib, for pictures alone

    options = dict(channel=run.reference.channel_set.dynamic[index], start=forecast.time.values)
    options |= dict(grid=run.reference.grid, land=run.reference.static.get("land_sea_mask"))
    plot.parent.mkdir(parents=True, exist_ok=True)
    if plot.suffix == ".gif":
        save_animation(plot, fields, truth, lead_hours=hours, **options)
    else:
        truth = None if truth is None else truth[0]
        draw_forecast(fields[0], truth, lead_hours=hours[0], **options).savefig(plot)


def make_parser() -> command_line.Parser:
    parser = command_line.make_parser("experiments.forecast", __doc__)
    add_run_options(parser)
    add, hours = parser.add_argument, command_line.integer(1)
    about = "times to start from; default: the only one of DATA, or the first of the run's test period"
    add("--start", dest="starts", type=command_line.times, metavar="TIME,...", help=about)
    add("--hours", type=hours, metavar="H", help="length of the forecast; default: the config's")
    add("--analysis", action="store_true", help="include the state that is started from, at lead 0")
    add("--members", type=command_line.integer(1), metavar="N", help="of an ensemble; default: one forecast, no noise")
    add("--perturbation", type=float, default=0.0, metavar="A", help="of members' starts, in standard deviations; 0")
    about = "noise on every point (default), smooth noise, differences of DATA's analyses, or lagged starts"
    add("--perturbation-kind", choices=PERTURBATIONS, default="white", help=about)
    add("--correlation-km", type=float, default=1000.0, metavar="L", help="of smooth noise; default: 1000")
    add("--seed", type=command_line.integer(0), default=0, metavar="N", help="of noise and perturbations; default: 0")
    add("--output", metavar="FILE", help=f"a .zarr, .nc or .grib2; default: {FORECAST_FILE} in RUN")
    add("--plot", metavar="FILE", help="image of a map of one channel, a .gif of all leads; default: none is drawn")
    add("--plot-hours", type=hours, default=24, metavar="H", help="lead that is drawn; default: 24")
    add("--channel", metavar="NAME", help=f"channel that is drawn; default: {DRAWN_FIRST} or the first")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    distributed.initialize()
    write(*open_run(options), **{name: getattr(options, name) for name in WRITTEN_WITH})


if __name__ == "__main__":
    ends.run(main)
