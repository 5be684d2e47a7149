"""Scores of any forecasts against any analyses, on the same samples: runs, and files of whatever model.

    scores = score_forecasts({"ours": "runs/era5", "gfs": "gs://.../gfs.zarr"}, "era5.archive", lead_hours=[24, 72])

What is scored, at which starts, is chosen here; how files become forecasts, in forecast_files.py.
"""

import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.sharding import Mesh, reshard
from jaxtyping import Array, Float

from weathermixer.archive.archive import Archive
from weathermixer.archive.frames import Frames
from weathermixer.archive.reference import Reference
from weathermixer.archive.sampling import find_times, in_period, spread
from weathermixer.archive.standardization import Standardization, to_physical
from weathermixer.fields.grid import regrid
from weathermixer.fields.variables import ChannelSet
from weathermixer.forecasting.rollout import Forecaster
from weathermixer.parallel.mesh import make_mesh, spec, ways
from weathermixer.runs.data import Data, make_frames, open_climatology, open_data_set, open_if_archive, open_seeps
from weathermixer.runs.forecast_files import HOUR, ForecastFile, Placed, open_forecast, place_file
from weathermixer.runs.run import Run, open_run
from weathermixer.runs.workdir import CONFIG_FILE
from weathermixer.sources.sources import Source, open_source
from weathermixer.verification.evaluation import evaluate
from weathermixer.verification.regions import region_names


def score_forecasts(
    forecasts: Mapping[str, str | os.PathLike | xr.Dataset | Run],
    truth: Data,
    *,
    climatology: Data | None = None,
    period: tuple[str, str] | None = None,
    lead_hours: Sequence[int] | None = None,
    mode: str | None = None,
    max_starts: int = 0,
    batch_size: int = 8,
    regrid: str | None = None,
    mesh: Mesh | None = None,
    readings: Mapping[str, Any] | None = None,
    seeps: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Scores forecasts of several models against analyses, all at the same starts, leads and channels.

    Args:
      forecasts: name -> a run (its workdir, an export, or open), or forecasts in files (`open_forecast`).
      truth: an archive, or what open_source reads.
      climatology: WeatherBench 2's, by hour and dayofyear; an archive with its own; other analyses, which one is fitted
        to. None: the truth's own, where that is an archive with one that holds no time that is scored.
      period: first and last date of starts; None: all that there are.
      lead_hours: None: all that files have, or of runs alone those of the first one's settings.
      regrid: how what lies on another grid is brought to that of the scores: of the truth where that is an archive, of
        the runs, or the coarsest. None: another grid is refused.
      readings: what of open_source tells of files what they do not: select, rename, units.
      seeps: SEEPS of precipitation too; `climatology` is WeatherBench 2's, with its thresholds.
      options: regions, grids, spectra and progress, as for `evaluate`.

    Returns the Dataset of `evaluate`; attrs["notes"] say what was left out. Raises ValueError for what does not fit.

    >>> from weathermixer.runs.comparison import score_forecasts
    >>> run = weathermixer.open_run("runs/quickstart")
    >>> starts = np.arange("2000-01-16", "2000-01-17", 6, dtype="datetime64[h]")
    >>> forecast = run.forecast("dry.archive", starts=starts, hours=12)
    >>> scores = score_forecasts({"file": forecast, "run": run}, "dry.archive", lead_hours=[6, 12])
    >>> float(abs(scores.rmse.sel(source="file") / scores.rmse.sel(source="run") - 1).max()) < 1e-4
    True
    """
    readings, truth = dict(readings or {}), open_if_archive(truth)
    mesh = mesh or make_mesh(1, 1, 1)
    opened = {name: _open(data, mesh, readings) for name, data in forecasts.items()}
    files = {name: found for name, found in opened.items() if isinstance(found, ForecastFile)}
    runs = {name: found for name, found in opened.items() if isinstance(found, Run)}
    if (mode and not runs) or (any(readings.values()) and not files):
        raise ValueError(f"mode={mode} is for runs, {readings} for files: there are none among {', '.join(forecasts)}")
    lead_hours = _choose_leads(files, runs, lead_hours)
    reference, notes = _choose_reference(opened, truth, step_hours=min(lead_hours), mesh=mesh)
    data = open_data_set(truth, reference, step_hours=0)
    frames = make_frames(data, reference, mesh, method=regrid)
    placed = {name: place_file(file, frames, lead_hours, regrid) for name, file in files.items()}
    for name, run in runs.items():
        own, how = run.open_frames(truth, regrid=regrid), mode or run.settings.evaluation.mode
        placed[name] = _place_run(run, own, frames, lead_hours, how)
        notes += [f"{name}: {note}" for note in run.notes(lead_hours, how)]
    starts, note = _choose_starts(frames, {name: placed[name].starts for name in forecasts}, period)
    starts = spread(starts, max_starts)
    times = frames.times[starts]
    valid = np.unique(times[:, None] + np.array(lead_hours) * HOUR)
    options["climatology"] = open_climatology(climatology, data, frames, valid, method=regrid)
    options["seeps"] = open_seeps(climatology, frames, batch_size) if seeps else None
    if any(name.endswith(("_land", "_sea")) for name in region_names(options.get("regions") or ())):
        options["land"] = _find_land(truth, data, reference)
    forecasters = {name: placed[name].make(times) for name in forecasts}
    options |= {"starts": starts, "lead_hours": lead_hours, "batch_size": batch_size}
    scores = evaluate(forecasters, frames, **options)
    lacking = scores.rmse.isnull().any([dim for dim in scores.rmse.dims if dim not in ("source", "channel")])
    for name in forecasts:
        if names := scores.channel.values[lacking.sel(source=name).values].tolist():
            note.append(f"{name} lacks values of {', '.join(names)}")
    modes = ", ".join(name + placed[name].how for name in forecasts)
    return scores.assign_attrs(mode=modes, notes="\n".join([*notes, *note]))


def _open(data: str | os.PathLike | xr.Dataset | Run, mesh: Mesh, readings: Mapping[str, Any]) -> ForecastFile | Run:
    if isinstance(data, Run):
        return data
    if not isinstance(data, xr.Dataset) and (pathlib.Path(data).expanduser() / CONFIG_FILE).exists():
        return open_run(data, mesh=mesh)
    return open_forecast(data, **readings)


def _choose_leads(
    files: Mapping[str, ForecastFile], runs: Mapping[str, Run], wanted: Sequence[int] | None
) -> list[int]:
    """Leads that all files have; ValueError for one that is wanted and not there, and where none is in common."""
    there = "; ".join(f"{name} has the leads {list(file.leads)}" for name, file in files.items())
    if not wanted and not files:
        wanted = next(iter(runs.values())).settings.evaluation.lead_hours
    common = set.intersection(*(set(file.leads) for file in files.values()), *([set(wanted)] if wanted else []))
    if absent := sorted(set(wanted or common) - common):
        raise ValueError(f"lead_hours={absent}: {there}")
    if not common:
        raise ValueError(f"no lead in common: {there}")
    return sorted(common)


def _choose_reference(
    opened: Mapping[str, ForecastFile | Run], truth: Data, *, step_hours: int, mesh: Mesh
) -> tuple[Reference, list[str]]:
    """Channels that truth and all forecasts have, in SI units, on the grid of the scores; lines about the others."""
    if not isinstance(truth, Archive | Source):
        truth = open_source(truth, static=(), step_hours=0)
    held, grids = {"the truth": truth.channels}, {True: [], False: [truth.grid]}  # of runs, of others
    for name, found in opened.items():
        is_run = isinstance(found, Run)
        held[name] = found.reference.channel_set.dynamic if is_run else found.first.channels
        grids[is_run].append(found.reference.grid if is_run else found.first.grid)
    common = [channel for channel in held["the truth"] if all(channel in channels for channels in held.values())]
    if not common:
        there = "; ".join(f"{name}: {', '.join(c.name for c in channels)}" for name, channels in held.items())
        raise ValueError(f"no channel that truth and forecasts have all: {there}")
    others = dict.fromkeys(c.name for channels in held.values() for c in channels if c not in common)
    notes = [f"not scored, as one or the other lacks them: {', '.join(others)}"] if others else []
    coarsest = min(grids[True] or grids[False], key=lambda grid: grid.shape[0])
    nothing, one = np.zeros(len(common)), np.ones(len(common))
    channels = ChannelSet(tuple(common), multiple=ways(mesh, "channel"))
    grid = truth.grid if isinstance(truth, Archive) else coarsest
    return Reference(channels, grid, step_hours, nothing, one, one, nothing, {}), notes


def _choose_starts(
    frames: Frames, held: Mapping[str, np.ndarray], period: tuple[str, str] | None
) -> tuple[np.ndarray, list[str]]:
    """(indices among the truth's times of the starts that all have, a line about the others); ValueError for none."""
    if period is not None:
        held = {name: times[in_period(times, period)] for name, times in held.items()}
    common = functools.reduce(np.intersect1d, [frames.times, *held.values()])
    there = ", ".join(
        f"{name} {len(times)} ({times[0]:.13} to {times[-1]:.13})" if len(times) else f"{name} none"
        for name, times in {**held, "the truth": frames.times}.items()
    )
    if not len(common):
        raise ValueError(f"no start that forecasts and truth have all{f' in {period}' if period else ''}: {there}")
    same = all(len(times) == len(common) for times in held.values())
    notes = [] if same else [f"scored are the {len(common)} starts that all have: {there}"]
    return find_times(frames.times, common), notes


def _place_run(run: Run, own: Frames, frames: Frames, lead_hours: Sequence[int], mode: str) -> Placed:
    """A run's forecasts in SI units, of the channels that are scored; `own` are the analyses as it sees them."""
    names, size = run.reference.channel_set.names, frames.reference.channel_set.size
    chosen = tuple(names.index(name) for name in frames.reference.channel_set.names)

    def make(times: np.ndarray) -> Forecaster:
        model = run.forecaster(own, lead_hours, mode, starts=find_times(own.times, times))

        def forecast(starts, state):
            there = find_times(own.times, frames.times[starts])
            for prediction in model(there, own.read(there)):
                yield _in_units(prediction, own.standardization, chosen, size)

        return forecast

    return Placed(own.times[run.find_starts(own)], make, f" ({mode})")


@functools.partial(jax.jit, static_argnames=("chosen", "size"))
def _in_units(
    prediction: Float[Array, "b n lat lon"], s: Standardization, chosen: tuple[int, ...], size: int
) -> Float[Array, "b size lat lon"]:
    fields = reshard(to_physical(prediction, s), spec("batch", None, "lat", "lon"))
    some = jnp.stack([fields[:, index] for index in chosen], axis=1)
    whole = jnp.pad(some, ((0, 0), (0, size - len(chosen)), (0, 0), (0, 0)))
    return reshard(whole, spec("batch", "channel", "lat", "lon"))


def _find_land(truth: Data, data: Archive | Source, reference: Reference) -> Float[np.ndarray, "lat lon"] | None:
    """The truth's land-sea mask on the grid of the scores; None where it has none."""
    if not isinstance(data, Archive) and not isinstance(truth, Source):
        data = open_source(truth, variables=reference.channel_set.names[:1], step_hours=0)
    land = data.static.get("land_sea_mask")
    if land is None or not data.grid.difference(reference.grid):
        return land
    return regrid(land, data.grid, reference.grid, method="conservative")
