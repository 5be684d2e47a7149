"""Scores a trained run beside persistence and climatology: RMSE, bias and ACC as WeatherBench 2 defines them.

  python -m experiments.evaluate --workdir=DIR [--data=ARCHIVE] [--period=FIRST,LAST] [--leads=6,24,72]

Prints a table and writes DIR/scores.json. Everything that is not given is taken from the run's config. The climatology
is the archive's own (WeatherBench 2's definition, see prepare --climatology) where that holds no time that is scored;
otherwise one fitted to the training period: by hour of day, and by day of year too where that spans two years.

Examples:
  # what the config's evaluation says, on the data that the run was trained with
  python -m experiments.evaluate --workdir=runs/quickstart
  # three days ahead by latent rollout, on another archive of the same channels, on four latitude bands
  python -m experiments.evaluate --workdir=runs/era5 --data=s3://bucket/era5.archive --period=2018-01-01,2018-12-31 \\
    --leads=24,48,72 --mode=latent --mesh=1,4,1
"""

import argparse
import os
import sys
from collections.abc import Sequence

import jax
import numpy as np
import xarray as xr

from experiments import command_line
from weathermixer.archive.sampling import in_period, with_previous
from weathermixer.forecasting.rollout import MODES
from weathermixer.parallel import distributed
from weathermixer.parallel.mesh import make_mesh
from weathermixer.runs import run as runs
from weathermixer.verification.climatologies import Climatology, Normals, make_climatology, open_normals
from weathermixer.verification.evaluation import evaluate
from weathermixer.verification.scores import format_scores, write_scores

SCORES_FILE = "scores.json"


def score(
    run: runs.Run,
    *,
    period: tuple[str, str] | None = None,
    lead_hours: Sequence[int] | None = None,
    mode: str | None = None,
    batch_size: int | None = None,
    max_starts: int | None = None,
    output: str | os.PathLike | None = None,
) -> xr.Dataset:
    """Scores a run over a period, prints the table and writes the JSON file (default: scores.json in the workdir).

    What is None is taken from the run's config. Raises ValueError for an empty period and for leads that do not fit.
    """
    options, archive = run.settings.evaluation, run.archive
    period = period or getattr(run.settings.data, options.period)
    starts = np.flatnonzero(in_period(archive.times, period))
    if not len(starts):
        raise ValueError(
            f"period {period[0]} to {period[1]} is empty: the archive {archive.path} holds times from "
            f"{archive.times[0]:.13} to {archive.times[-1]:.13}"
        )
    if run.settings.model.history == 2:
        starts = with_previous(archive.times, starts, step_hours=archive.step_hours)
    starts = spread(starts, max_starts or options.max_starts)
    batch_size = batch_size or options.batch_size
    # the first process speaks; its bars are for a terminal
    first = jax.process_index() == 0
    progress = first and sys.stderr.isatty()
    scores = evaluate(
        run.apply,
        run.params,
        archive,
        run.channel_set,
        run.standardization,
        run.mesh,
        starts=starts,
        lead_hours=lead_hours or options.lead_hours,
        step_hours=archive.step_hours,
        batch_size=batch_size,
        climatology=_choose_climatology(run, period, batch_size=batch_size, progress=progress),
        mode=mode or options.mode,
        history=run.settings.model.history,
        until=archive.times[in_period(archive.times, period)][-1],
        progress=progress,
    )
    scores = scores.assign_attrs(step=run.step)
    if first:
        print(format_scores(scores), flush=True)
        write_scores(scores, output or run.workdir / SCORES_FILE)
    return scores


def _choose_climatology(
    run: runs.Run, period: tuple[str, str], *, batch_size: int, progress: bool
) -> Climatology | Normals:
    """The archive's own climatology where it holds no time of the period, else one fitted to the training period."""
    times = run.archive.times
    normals = open_normals(run.archive, run.channel_set)
    if normals and not normals.holds_any(times[in_period(times, period)]):
        return normals
    if normals and jax.process_index() == 0:
        print(
            f"the climatology in {run.archive.path} is also of times that are scored: one of the training period takes "
            "its place (prepare --statistics_period keeps times out)"
        )
    training = np.flatnonzero(in_period(times, run.settings.data.train))
    data = (run.archive, run.channel_set, run.standardization, run.mesh)
    return make_climatology(*data, indices=training, batch_size=batch_size, progress=progress)


def spread(starts: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the starts, evenly spread; all where count is 0."""
    if not count or count >= len(starts):
        return starts
    return starts[np.linspace(0, len(starts) - 1, count).round().astype(int)]


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which run is opened, and where."""
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the trained run")
    command_line.add_data(parser, "default: the one that the run was trained on")
    parser.add_argument("--mode", choices=MODES, help="how steps follow each other; default: the config's")
    about = "mesh to run on, as -1,1,1; default: the one it was trained on"
    parser.add_argument("--mesh", type=command_line.mesh, metavar=command_line.MESH, help=about)


def open_run(options: argparse.Namespace) -> runs.Run:
    """The run that `add_run_options` chose."""
    mesh = options.mesh and make_mesh(*options.mesh)
    return runs.open_run(options.workdir, data=options.data, mesh=mesh)


def make_parser() -> command_line.Parser:
    """The command line's options."""
    parser = command_line.make_parser("experiments.evaluate", __doc__)
    add_run_options(parser)
    add, at_least = parser.add_argument, command_line.integer
    about = "dates of the starts, both included; default: the config's"
    add("--period", type=command_line.period, metavar="FIRST,LAST", help=about)
    about = "lead times in hours, as 6,24,72; default: the config's"
    add("--leads", type=command_line.integers, metavar="H,H,...", help=about)
    add("--max_starts", type=at_least(0), metavar="N", help="score so many forecasts, evenly spread; 0: all")
    add("--batch_size", type=at_least(1), metavar="N", help="forecasts at a time; default: the config's")
    add("--output", metavar="FILE", help=f"JSON file of the scores; default: {SCORES_FILE} in DIR")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    distributed.initialize()
    score(
        open_run(options),
        period=options.period,
        lead_hours=options.leads,
        mode=options.mode,
        batch_size=options.batch_size,
        max_starts=options.max_starts,
        output=options.output,
    )


if __name__ == "__main__":
    command_line.run(main)
