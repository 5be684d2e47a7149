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
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from experiments import command_line
from experiments.evaluate import add_run_options, open_run
from weathermixer.archive.archive import Archive
from weathermixer.archive.loader import read_frames
from weathermixer.archive.sampling import in_period, with_previous
from weathermixer.archive.standardization import standardize
from weathermixer.forecasting.forecasts import Frames, check_output, gather_physical, make_forecast, write_forecast
from weathermixer.forecasting.rollout import check_leads
from weathermixer.parallel import distributed
from weathermixer.parallel.mesh import use_mesh, ways
from weathermixer.runs import run as runs
from weathermixer.verification.figures import draw_forecast

FORECAST_FILE = "forecast.zarr"
PLOT_FILE = "forecast.png"
# what a forecaster looks at first, where the run has it
DRAWN_FIRST = "geopotential_500"
MOST_STARTS_AT_A_TIME = 8


def write(
    run: runs.Run,
    *,
    starts: Sequence[np.datetime64] | None = None,
    hours: int | None = None,
    mode: str | None = None,
    output: str | os.PathLike | None = None,
    plot: str | os.PathLike | None = None,
    plot_hours: int = 24,
    channel: str | None = None,
) -> None:
    """Writes forecasts from the archive's times `starts`, and a map of the first of them `plot_hours` ahead.

    What is None is taken from the run's config: the first time of its test period, its hours, forecast.zarr and
    forecast.png in the workdir. Raises ValueError, before the forecast runs, for starts that the archive does not have,
    hours that are no multiple of the step, a channel that is not predicted and a file that cannot be written.
    """
    archive, options = run.archive, run.settings.evaluation
    lead_hours = make_leads(hours or options.forecast_hours, archive.step_hours)
    indices = find_starts(archive, starts) if starts else _first_of_period(archive, run.settings.data.test)
    if run.settings.model.history == 2:
        seen = with_previous(archive.times, indices, step_hours=archive.step_hours)
        if len(seen) < len(indices):
            absent = archive.times[np.setdiff1d(indices, seen)]
            raise ValueError(
                f"starts {absent.astype('datetime64[h]')} lack the frame a step before, which history=2 needs"
            )
    output = check_output(output or run.workdir / FORECAST_FILE)
    plot = pathlib.Path(plot or run.workdir / PLOT_FILE)
    names = run.channel_set.names
    channel = channel or (DRAWN_FIRST if DRAWN_FIRST in names else names[0])
    if channel not in names:
        raise ValueError(f"channel={channel!r} is not predicted; the run has {list(names)}")
    drawn = lead_hours.index(min(lead_hours, key=lambda lead: abs(lead - plot_hours)))

    # a small batch holds little; it must divide over `data`
    instances = ways(run.mesh, "batch")
    first = jax.process_index() == 0
    frames = make_forecast(
        run.apply,
        run.params,
        archive,
        run.channel_set,
        run.standardization,
        run.mesh,
        starts=indices,
        lead_steps=[lead // archive.step_hours for lead in lead_hours],
        batch_size=-(-min(len(indices), MOST_STARTS_AT_A_TIME) // instances) * instances,
        mode=mode or options.mode,
        history=run.settings.model.history,
        progress=first and sys.stderr.isatty(),
    )
    kept: list[np.ndarray] = []
    write_forecast(
        output,
        _keep(frames, lead=drawn, channel=names.index(channel), kept=kept),
        times=archive.times[indices],
        lead_hours=lead_hours,
        grid=archive.grid,
        channels=run.channel_set.dynamic,
        attributes={
            "title": f"forecasts of a WeatherMixer trained for {run.step} steps",
            "initial_conditions": str(archive.attributes["source"]),
            "rollout": mode or options.mode,
        },
    )
    truth = _read_truth(run, indices[0], lead_hours[drawn], names.index(channel))
    if first:
        _draw(run, plot, kept[0], truth, channel=names.index(channel), start=indices[0], lead_hours=lead_hours[drawn])
        print(f"{len(indices)} forecast(s) of {lead_hours[-1]} h in {output}, a map in {plot}", flush=True)


def make_leads(hours: int, step_hours: int) -> list[int]:
    """Every step's lead up to `hours`; ValueError where hours is not a positive multiple of the step."""
    check_leads([hours], step_hours=step_hours)
    return list(range(step_hours, hours + 1, step_hours))


def find_starts(archive: Archive, starts: Sequence[np.datetime64]) -> np.ndarray:
    """Indices of the archive's times `starts`; ValueError that names the nearest time for one that is not there."""
    indices = []
    for start in np.asarray(starts, "datetime64[ns]"):
        nearest = int(np.abs(archive.times - start).argmin())
        if archive.times[nearest] != start:
            raise ValueError(
                f"start={start:.13} is not in {archive.path}, which holds {archive.times[0]:.13} to "
                f"{archive.times[-1]:.13}; the nearest time is {archive.times[nearest]:.13}"
            )
        indices.append(nearest)
    return np.array(indices)


def _first_of_period(archive: Archive, period: tuple[str, str]) -> np.ndarray:
    starts = np.flatnonzero(in_period(archive.times, period))
    if not len(starts):
        raise ValueError(f"{archive.path} has no time between {period[0]} and {period[1]} to start from: give --start")
    return starts[:1]


def _keep(frames: Iterable[Frames], *, lead: int, channel: int, kept: list[np.ndarray]) -> Iterator[Frames]:
    """Passes frames on, and keeps the first start's field of one lead and channel."""
    for starts, at, fields in frames:
        if at == lead and starts[0] == 0:
            kept.append(fields[0, channel])
        yield starts, at, fields


def _read_truth(run: runs.Run, start: int, lead_hours: int, channel: int) -> np.ndarray | None:
    """The analysis at a start's valid time in SI units, None where the archive ends before."""
    found = np.flatnonzero(run.archive.times == run.archive.times[start] + np.timedelta64(lead_hours, "h"))
    if not len(found):
        return None
    with use_mesh(run.mesh):
        indices = np.repeat(found, ways(run.mesh, "batch"))
        frames = standardize(read_frames(run.archive, run.channel_set, run.mesh, indices), run.standardization)
        return gather_physical(frames, run.standardization)[0, channel]


def _draw(run: runs.Run, plot: pathlib.Path, forecast, truth, *, channel: int, start: int, lead_hours: int) -> None:
    figure = draw_forecast(
        forecast,
        truth,
        grid=run.archive.grid,
        channel=run.channel_set.dynamic[channel],
        start=run.archive.times[start],
        lead_hours=lead_hours,
        land=run.archive.static.get("land_sea_mask"),
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
    add("--plot", metavar="FILE", help=f"image of the map; default: {PLOT_FILE} in DIR")
    add("--plot_hours", type=hours, default=24, metavar="H", help="lead that is drawn; default: 24")
    add("--channel", metavar="NAME", help=f"channel that is drawn; default: {DRAWN_FIRST} or the first")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    distributed.initialize()
    write(
        open_run(options),
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
