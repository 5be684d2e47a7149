"""Scores forecasts as WeatherBench 2 does, beside persistence and climatology: of a run, or of any models' files.

  python -m experiments.evaluate RUN [--data=DATA] [--period=FIRST,LAST] [--leads=6,24,72]
  python -m experiments.evaluate --forecast=FILE_OR_RUN,... --truth=DATA [--climatology=DATA]

RUN is a run's workdir, or an export of it. DATA is an archive, or any file that experiments.prepare reads: slower, as
whole frames are read. Prints a table and writes RUN/scores.json, and scores.nc with the statistics of every start
beside it. Everything that is not given is taken from the run's config; scores of anything else than that says, and of
an older checkpoint, have a file of their own. The climatology is the archive's own (WeatherBench 2's definition, see
prepare --climatology) where that holds no time that is scored; otherwise one fitted to what DATA has of the training
period: by hour of day, and by day of year too where that spans two years; where it has nothing of it there is none.

With --forecast several models are scored at the starts, leads and channels that all have: files in WeatherBench 2's
form (Zarr, netCDF, GRIB, local or remote; ensembles too), and runs. Of files --select, --rename and --units tell what
they do not. --climatology is WeatherBench 2's, an archive with its own, or other analyses.

Examples:
  # what the config's evaluation says, on the data that the run was trained with
  python -m experiments.evaluate runs/quickstart
  # three days ahead by latent rollout, on another archive of the same channels, on four latitude bands
  python -m experiments.evaluate runs/era5 --data=s3://bucket/era5.archive --period=2018-01-01,2018-12-31 \\
    --leads=24,48,72 --mode=latent --mesh=1,4,1
  # a run against another model's forecasts, by region and season, on WeatherBench 2's coarse grid too
  python -m experiments.evaluate --forecast=ours=runs/era5,hres=hres.zarr --truth=era5.zarr --regrid=conservative \\
    --climatology=climatology.zarr --regions=global,tropics,europe,alps=43:49:4:17 --by=season --grids=native,64x32
"""

import argparse
import dataclasses
import functools
import hashlib
import os
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import xarray as xr

from experiments import command_line, ends
from weathermixer import Archive, Run, Settings, format_scores, make_mesh
from weathermixer.archive.sampling import in_period
from weathermixer.fields.grid import METHODS
from weathermixer.forecasting.rollout import MODES, check_leads
from weathermixer.parallel import distributed
from weathermixer.runs import run as runs
from weathermixer.runs.comparison import score_forecasts
from weathermixer.runs.data import Data
from weathermixer.runs.samples import check_hours
from weathermixer.runs.workdir import CHECKPOINTS
from weathermixer.sources.sources import Source
from weathermixer.training.checkpoint import saved_steps
from weathermixer.verification.metrics import GROUPS, METRICS, compute_metrics
from weathermixer.verification.regions import REGIONS
from weathermixer.verification.scores import write_scores

SCORES_FILE = "scores.json"
# options of Run.evaluate and of score_forecasts, as they are called there
ASKED = ("period", "lead_hours", "mode", "regrid", "regions", "grids", "spectra", "batch_size", "max_starts")


def score(
    run: Run,
    data: Data | None = None,
    *,
    output: str | os.PathLike | None = None,
    by: str | None = None,
    **options: Any,
) -> xr.Dataset:
    """Scores a run, as Run.evaluate; prints the table and writes JSON and netCDF files.

    `by` takes forecasts that start in each "season" or "hour" apart. The default file is scores.json in the workdir
    where nothing is asked but what the run's settings say, of its last checkpoint, and one of its own for another
    question.
    """
    name = data if data is None else getattr(data, "path", getattr(data, "name", "a dataset"))
    scores = run.evaluate(data, **options, progress=_speaks() and sys.stderr.isatty())
    asked = {"data": os.path.abspath(name) if name and os.path.exists(name) else name, "step": run.step, **options}
    usual = dataclasses.asdict(run.settings.evaluation) | {"data": run.archive}
    usual |= {"period": getattr(run.settings.data, run.settings.evaluation.period)}
    usual |= {"step": max(saved_steps(run.path / CHECKPOINTS), default=run.step)}
    other = {name: value for name, value in asked.items() if name not in usual or value != usual[name]}
    return _report(scores, output or run.path / _name_file(by=by, **other), by=by)


def _speaks() -> bool:
    return jax.process_index() == 0  # it prints and writes; bars are for a terminal


def _name_file(*, batch_size: int | None = None, **question: Any) -> str:
    """scores.json, or a name that tells the question apart from others; how it is computed is no part of it."""
    asked = sorted((name, value) for name, value in question.items() if value is not None)
    digest = hashlib.sha256(repr(asked).encode()).hexdigest()[:8]
    return f"scores-{digest}.json" if asked else SCORES_FILE


def _report(scores: xr.Dataset, path: str | os.PathLike, *, by: str | None) -> xr.Dataset:
    if by is not None:
        scores = scores.drop_vars([name for name in METRICS if name in scores])
        scores = scores.assign(compute_metrics(scores, by=by))
    if _speaks():
        print(format_scores(scores), flush=True)
        write_scores(scores, path)
        print(f"scores in {path} and {pathlib.Path(path).with_suffix('.nc')}", flush=True)
    return scores


def check(settings: Settings, archive: Archive) -> None:
    """Raises ValueError for scores and a forecast of a config that an archive does not allow, before there is a run."""
    hours, period, step_hours = settings.evaluation.forecast_hours, settings.evaluation.period, archive.step_hours
    starts = np.flatnonzero(in_period(archive.times, getattr(settings.data, period)))
    check_hours(settings, archive, "lead_hours", starts, period)
    check_leads([hours], step_hours=step_hours * settings.training.leads[0], name="config.evaluation.forecast_hours")


def add_run_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The options that say which run is opened, and where."""
    about = "folder of a trained run, or of an export"
    parser.add_argument("run", metavar="RUN", nargs=None if required else "?", help=about)
    about = "archive, or what experiments.prepare reads, which is slower; default: the archive that trained the run"
    parser.add_argument("--data", *["--truth"] * (not required), metavar="DATA", help=about)
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
    parser = command_line.make_parser("experiments.evaluate", __doc__)
    add_run_options(parser, required=False)
    add, at_least = parser.add_argument, command_line.integer
    about = "forecasts in files, and runs, that are scored together in the place of RUN"
    stems = functools.partial(command_line.pairs, name_of=lambda path: pathlib.PurePath(path).stem)
    add("--forecast", type=stems, metavar="[NAME=]FILE_OR_RUN,...", help=about)
    add("--climatology", metavar="DATA", help="of --forecast: what anomalies are from; default: the truth's own")
    about = "dates of the starts, both included; default: the config's, or all"
    add("--period", type=command_line.period, metavar="FIRST,LAST", help=about)
    about = "lead times in hours, as 6,24,72; default: the config's, or all that files have"
    add("--leads", dest="lead_hours", type=command_line.integers, metavar="H,H,...", help=about)
    add("--max-starts", type=at_least(0), metavar="N", help="score so many forecasts, evenly spread; 0: all")
    add("--batch-size", type=at_least(1), metavar="N", help="forecasts at a time; default: the config's, or 8")
    about = f"{', '.join(REGIONS)}, each with _land or _sea behind it, or NAME=SOUTH:NORTH:WEST:EAST; default: global"
    add("--regions", type=command_line.words, metavar="REGION,...", help=about)
    about = "native, and coarser ones as 64x32, that fields are brought to conservatively; default: native"
    add("--grids", type=command_line.words, metavar="GRID,...", help=about)
    add("--by", choices=GROUPS, help="take forecasts that start in each season, or at each hour, apart")
    add("--spectra", action="store_true", default=None, help="zonal power spectra too, in the netCDF file")
    about = "of --forecast: SEEPS of precipitation too, by WeatherBench 2's --climatology with its thresholds"
    add("--seeps", action="store_true", help=about)
    about = (
        f"JSON file, beside which .nc is written; default: {SCORES_FILE}, in RUN, or a name that tells what is asked"
    )
    add("--output", type=pathlib.Path, metavar="FILE", help=about)
    return parser


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser()
    options = parser.parse_args(arguments)
    if (options.run is None) == (options.forecast is None):
        parser.error(
            "give RUN, or --forecast=A,B with commas between: not both" if options.run else "give RUN or --forecast"
        )
    if options.run is not None and (options.climatology or options.seeps):
        parser.error("--climatology, --seeps: of a run alone it is its data's own, or made of its training period")
    if options.output and (options.output.is_dir() or options.output.suffix == ".nc"):
        parser.error(f"--output={options.output} is a folder, or where netCDF goes beside JSON: name a file .json")
    if options.forecast is not None and options.data is None:
        parser.error("--forecast needs the analyses that it is measured against: --truth=DATA")
    distributed.initialize()
    asked = {name: given for name in ASKED if (given := getattr(options, name)) is not None}
    if options.run is not None:
        score(*open_run(options, scored=True), by=options.by, output=options.output, **asked)
        return
    asked |= {"truth": options.data, "climatology": options.climatology, "seeps": options.seeps}
    asked["readings"] = {name: getattr(options, name) for name in ("select", "rename", "units")}
    mesh, name = make_mesh(*(options.mesh or (1, 1, 1))), _name_file(by=options.by, forecasts=options.forecast, **asked)
    scores = score_forecasts(options.forecast, mesh=mesh, progress=_speaks() and sys.stderr.isatty(), **asked)
    _report(scores, options.output or name, by=options.by)


if __name__ == "__main__":
    ends.run(main)
