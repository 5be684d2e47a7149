"""Scores a trained run beside persistence and climatology: RMSE, bias and ACC as WeatherBench 2 defines them.

  python -m experiments.evaluate RUN [--data=DATA] [--period=FIRST,LAST] [--leads=6,24,72]

RUN is a run's workdir, or an export of it. DATA is an archive, or any file that experiments.prepare reads: slower, as
whole frames are read. Prints a table and writes RUN/scores.json. Everything that is not given is taken from the run's
config. The climatology is the archive's own (WeatherBench 2's definition, see prepare --climatology) where that holds
no time that is scored; otherwise one fitted to what DATA has of the training period: by hour of day, and by day of year
too where that spans two years; where it has nothing of it there is none.

Examples:
  # what the config's evaluation says, on the data that the run was trained with
  python -m experiments.evaluate runs/quickstart
  # three days ahead by latent rollout, on another archive of the same channels, on four latitude bands
  python -m experiments.evaluate runs/era5 --data=s3://bucket/era5.archive --period=2018-01-01,2018-12-31 \\
    --leads=24,48,72 --mode=latent --mesh=1,4,1
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr

from experiments import command_line
from weathermixer.archive.archive import Archive
from weathermixer.archive.sampling import in_period, with_previous
from weathermixer.fields.regridding import METHODS
from weathermixer.forecasting.rollout import MODES, check_leads
from weathermixer.parallel import distributed
from weathermixer.parallel.mesh import make_mesh
from weathermixer.runs import run as runs
from weathermixer.runs.data import Data
from weathermixer.runs.run import Run
from weathermixer.runs.settings import Settings
from weathermixer.sources.sources import Source
from weathermixer.verification.evaluation import valid_indices
from weathermixer.verification.scores import format_scores, write_scores

SCORES_FILE = "scores.json"


def score(run: Run, data: Data | None = None, *, output: str | os.PathLike | None = None, **options: Any) -> xr.Dataset:
    """Scores a run, as Run.evaluate; prints the table and writes a JSON file (default: scores.json in the workdir)."""
    first = jax.process_index() == 0  # it speaks; its bars are for a terminal
    scores = run.evaluate(data, **options, progress=first and sys.stderr.isatty())
    if first:
        print(format_scores(scores), flush=True)
        write_scores(scores, output or run.path / SCORES_FILE)
    return scores


def check(settings: Settings, archive: Archive) -> None:
    """Raises ValueError for scores and a forecast of a config that an archive does not allow, before there is a run."""
    options, times, step_hours = settings.evaluation, archive.times, archive.step_hours * settings.training.leads[0]
    period = getattr(settings.data, options.period)
    starts = np.flatnonzero(in_period(times, period))
    try:
        check_leads(options.lead_hours, step_hours=step_hours)
        if settings.model.history == 2 and len(starts):
            starts = with_previous(times, starts, step_hours=archive.step_hours)
        until = times[in_period(times, period)].max(initial=times[0])
        valid_indices(times, starts, lead_hours=options.lead_hours, until=until)
        check_leads([options.forecast_hours], step_hours=step_hours)
    except ValueError as error:
        raise ValueError(f"config.evaluation: {error}") from None


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which run is opened, and where."""
    parser.add_argument("run", metavar="RUN", help="folder of a trained run, or of an export")
    about = "archive, or what experiments.prepare reads, which is slower; default: the archive that trained the run"
    parser.add_argument("--data", metavar="DATA", help=about)
    command_line.add_readings(parser.add_argument)
    about = "checkpoint that is taken; default: the last"
    parser.add_argument("--step", type=command_line.integer(0), metavar="N", help=about)
    about = "bring DATA to the run's grid, where it is another"
    parser.add_argument("--regrid", choices=METHODS, help=about)
    parser.add_argument("--mode", choices=MODES, help="how steps follow each other; default: the config's")
    about = "mesh to run on, as -1,1,1; default: the one it was trained on"
    parser.add_argument("--mesh", type=command_line.mesh, metavar=command_line.MESH, help=about)


def open_run(options: argparse.Namespace, *, scored: bool = False) -> tuple[Run, Archive | Source | None]:
    """The run that `add_run_options` chose, and its data where that was chosen, to start from or to be scored."""
    run = runs.open_run(options.run, mesh=options.mesh and make_mesh(*options.mesh), step=options.step)
    if options.data is None:
        return run, None
    return run, run.open_data(
        options.data, select=options.select, rename=options.rename, units=options.units, scored=scored
    )


def make_parser() -> command_line.Parser:
    """The command line's options."""
    parser = command_line.make_parser("experiments.evaluate", __doc__)
    add_run_options(parser)
    add, at_least = parser.add_argument, command_line.integer
    about = "dates of the starts, both included; default: the config's"
    add("--period", type=command_line.period, metavar="FIRST,LAST", help=about)
    about = "lead times in hours, as 6,24,72; default: the config's"
    add("--leads", type=command_line.integers, metavar="H,H,...", help=about)
    add("--max-starts", type=at_least(0), metavar="N", help="score so many forecasts, evenly spread; 0: all")
    add("--batch-size", type=at_least(1), metavar="N", help="forecasts at a time; default: the config's")
    add("--output", metavar="FILE", help=f"JSON file of the scores; default: {SCORES_FILE} in RUN")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    distributed.initialize()
    score(
        *open_run(options, scored=True),
        period=options.period,
        lead_hours=options.leads,
        mode=options.mode,
        batch_size=options.batch_size,
        max_starts=options.max_starts,
        regrid=options.regrid,
        output=options.output,
    )


if __name__ == "__main__":
    command_line.run(main)
