"""Scores of any forecasts against any analyses, on the same samples: runs, and files of whatever model.

    scores = score_forecasts({"ours": "runs/era5", "gfs": "gs://.../gfs.zarr"}, "era5.archive", lead_hours=[24, 72])

A forecast in a file is a source for each of its leads, whose times are those that it is valid at: names, units, levels
and orders are the sources room's. It is read in blocks, a lead of a few starts at a time.
"""

import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.sharding import Mesh, reshard
from jaxtyping import Array, Float

from weathermixer.archive.archive import Archive, is_archive, open_archive
from weathermixer.archive.frames import Frames
from weathermixer.archive.reference import Reference
from weathermixer.archive.sampling import find_times, in_period
from weathermixer.archive.standardization import Standardization, to_physical
from weathermixer.fields.regridding import regrid as regrid_fields
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel.mesh import make_mesh, spec, ways
from weathermixer.runs.data import Data, make_frames, open_data_set
from weathermixer.runs.run import Run, open_run, spread
from weathermixer.runs.workdir import CONFIG_FILE
from weathermixer.sources.formats import open_raw
from weathermixer.sources.selection import find_entries
from weathermixer.sources.sources import Source, open_source
from weathermixer.sources.times import LEADS
from weathermixer.verification.climatologies import (
    Calendar,
    Climatology,
    Normals,
    as_calendar,
    make_climatology,
    open_normals,
)
from weathermixer.verification.evaluation import Forecaster, evaluate
from weathermixer.verification.regions import region_names

MEMBERS = ("number", "realization", "member", "ensemble")
HOUR = np.timedelta64(1, "h")


class ForecastFile(NamedTuple):
    """Forecasts in files: pieces, and for each lead in hours what selects each member of them; `first` is one of those.

    `options` are open_source's, for all of them.
    """

    pieces: list[xr.Dataset]
    leads: dict[int, list[dict[str, Any]]]
    options: dict[str, Any]
    first: Source


def open_forecast(data: str | os.PathLike | xr.Dataset, **options: Any) -> ForecastFile:
    """Opens forecasts of WeatherBench 2's form, or of any that a source may have; `options` are open_source's.

    Raises ValueError where there are no leads.
    """
    pieces, _ = open_raw([data])
    select = dict(options.pop("select", None) or {})
    lead_name, entries = find_entries(pieces, LEADS)
    if lead_name is None:
        raise ValueError(f"{_name(data)} has no leads ({', '.join(LEADS)}): it holds analyses, or give it one of these")
    member_name, members = find_entries(pieces, [name for name in MEMBERS if name not in select])
    hours = {float(entry.rstrip("h")): entry for entry in entries}
    leads = {
        int(lead): [select | {lead_name: hours[lead]} | ({member_name: m} if m else {}) for m in members or [None]]
        for lead in sorted(hours)
        if lead > 0 and lead == int(lead)
    }
    if not leads:
        raise ValueError(f"{_name(data)} has the leads {', '.join(entries)} alone: none is a whole number of hours")
    some = next(iter(leads.values()))[0]
    return ForecastFile(pieces, leads, options, open_source(pieces, **options, select=some, static=(), step_hours=0))


def _name(data: str | os.PathLike | xr.Dataset) -> str:
    return "the dataset" if isinstance(data, xr.Dataset) else str(data)


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
    progress: bool = False,
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
      options: regions, grids and spectra, as for `evaluate`.

    Returns the Dataset of `evaluate`; attrs["notes"] say what was left out. Raises ValueError for what does not fit.

    >>> from weathermixer.runs.comparison import score_forecasts
    >>> run = weathermixer.open_run("runs/quickstart")
    >>> starts = np.arange("2000-01-16", "2000-01-17", 6, dtype="datetime64[h]")
    >>> forecast = run.forecast("dry.archive", starts=starts, hours=12)
    >>> scores = score_forecasts({"file": forecast, "run": run}, "dry.archive", lead_hours=[6, 12])
    >>> float(abs(scores.rmse.sel(source="file") / scores.rmse.sel(source="run") - 1).max()) < 1e-4
    True
    """
    readings = dict(readings or {})
    mesh = mesh or make_mesh(1, 1, 1)
    opened = {name: _open(data, mesh, readings) for name, data in forecasts.items()}
    files = {name: found for name, found in opened.items() if isinstance(found, ForecastFile)}
    runs = {name: found for name, found in opened.items() if isinstance(found, Run)}
    if (mode and not runs) or (any(readings.values()) and not files):
        raise ValueError(f"mode={mode} is for runs, {readings} for files: there are none among {', '.join(forecasts)}")
    lead_hours = _choose_leads(files, runs, lead_hours)
    reference, notes = _choose_reference(opened, truth, step_hours=min(lead_hours), mesh=mesh)

    def frames_of(data: Data, **options: Any) -> Frames:
        return make_frames(open_data_set(data, reference, **options, step_hours=0), reference, mesh, method=regrid)

    data = open_data_set(truth, reference, step_hours=0)
    frames = make_frames(data, reference, mesh, method=regrid)
    leads = {
        name: {
            lead: [frames_of(file.pieces, **file.options, select=some) for some in file.leads[lead]]
            for lead in lead_hours
        }
        for name, file in files.items()
    }
    of_runs = {name: run.open_frames(run.open_data(truth), regrid=regrid) for name, run in runs.items()}
    starts, more = _choose_starts(frames, leads, {name: (runs[name], f) for name, f in of_runs.items()}, period)
    starts = spread(starts, max_starts)
    forecasters: dict[str, Forecaster] = {}
    modes = []
    for name in forecasts:
        if name in files:
            forecasters[name] = _read_forecasts(frames, leads[name])
            modes.append(f"{name} ({len(leads[name][lead_hours[0]])} members)".replace(" (1 members)", ""))
        else:
            run, own = runs[name], mode or runs[name].settings.evaluation.mode
            forecasters[name] = _run_forecasts(run, of_runs[name], frames, lead_hours, own, starts)
            modes.append(f"{name} ({own})")
            more += [f"{name}: {note}" for note in run.notes(lead_hours, own)]
    valid = np.unique(frames.times[starts][:, None] + np.array(lead_hours) * HOUR)
    options |= {"lead_hours": lead_hours, "batch_size": batch_size, "progress": progress}
    options |= {"climatology": _choose_climatology(climatology, data, reference, mesh, regrid, valid)}
    if any(name.endswith(("_land", "_sea")) for name in region_names(options.get("regions") or ())):
        options["land"] = _find_land(truth, data, reference)
    scores = evaluate(forecasters, frames, starts=starts, **options)
    lacking = scores.rmse.isnull().any([dim for dim in scores.rmse.dims if dim not in ("source", "channel")])
    for name in forecasts:
        if names := scores.channel.values[lacking.sel(source=name).values].tolist():
            more.append(f"{name} lacks values of {', '.join(names)}")
    return scores.assign_attrs(mode=", ".join(modes), notes="\n".join([*notes, *more]))


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
    for name, file in files.items():
        if absent := sorted(set(wanted or ()) - set(file.leads)):
            raise ValueError(f"lead_hours={absent}: {name} has the leads {list(file.leads)}")
    if wanted or not files:
        return sorted(set(wanted or next(iter(runs.values())).settings.evaluation.lead_hours))
    common = sorted(set.intersection(*(set(file.leads) for file in files.values())))
    if not common:
        raise ValueError("no lead in common: " + "; ".join(f"{name} has {list(f.leads)}" for name, f in files.items()))
    return common


def _choose_reference(
    opened: Mapping[str, ForecastFile | Run], truth: Data, *, step_hours: int, mesh: Mesh
) -> tuple[Reference, list[str]]:
    """Channels that truth and all forecasts have, in SI units, on the grid of the scores; a line about the others."""
    if not isinstance(truth, xr.Dataset | Archive | Source) and is_archive(truth):
        truth = open_archive(truth)
    elif not isinstance(truth, Archive | Source):
        truth = open_source(truth, static=(), step_hours=0)
    holders: dict[str, Archive | Source | Run] = {"the truth": truth}
    holders |= {name: found.first if isinstance(found, ForecastFile) else found for name, found in opened.items()}
    held = {
        name: found.reference.channel_set.dynamic if isinstance(found, Run) else found.channels
        for name, found in holders.items()
    }
    common = [channel for channel in held["the truth"] if all(channel in channels for channels in held.values())]
    if not common:
        there = "; ".join(f"{name}: {', '.join(c.name for c in channels)}" for name, channels in held.items())
        raise ValueError(f"no channel that truth and forecasts have all: {there}")
    others = dict.fromkeys(c.name for channels in held.values() for c in channels if c not in common)
    notes = [f"not scored, as one or the other lacks them: {', '.join(others)}"] if others else []
    grids = [found.reference.grid if isinstance(found, Run) else found.grid for found in holders.values()]
    runs = [found.reference.grid for found in holders.values() if isinstance(found, Run)]
    grid = truth.grid if isinstance(truth, Archive) else min(runs or grids, key=lambda grid: grid.shape[0])
    nothing, one = np.zeros(len(common)), np.ones(len(common))
    channels = ChannelSet(tuple(common), multiple=ways(mesh, "channel"))
    return Reference(channels, grid, step_hours, nothing, one, one, nothing, {}), notes


def _choose_starts(
    frames: Frames,
    leads: Mapping[str, Mapping[int, Sequence[Frames]]],
    runs: Mapping[str, tuple[Run, Frames]],
    period: tuple[str, str] | None,
) -> tuple[np.ndarray, list[str]]:
    """(indices among the truth's times of the starts that all have, a line about the others); ValueError for none."""
    held = {}
    for name, of_leads in leads.items():
        times = [one.times - lead * HOUR for lead, members in of_leads.items() for one in members]
        held[name] = functools.reduce(np.intersect1d, times)
    for name, (run, own) in runs.items():
        held[name] = own.times[run.find_starts(own)]
    if period is not None:
        held = {name: times[in_period(times, period)] for name, times in held.items()}
    common = functools.reduce(np.intersect1d, [frames.times, *held.values()])
    there = ", ".join(f"{name} {_describe(times)}" for name, times in {**held, "the truth": frames.times}.items())
    if not len(common):
        raise ValueError(f"no start that forecasts and truth have all{f' in {period}' if period else ''}: {there}")
    same = all(len(times) == len(common) for times in held.values())
    notes = [] if same else [f"scored are the {len(common)} starts that all have: {there}"]
    return find_times(frames.times, common), notes


def _describe(times: np.ndarray) -> str:
    return f"{len(times)} ({times[0]:.13} to {times[-1]:.13})" if len(times) else "none"


def _read_forecasts(frames: Frames, leads: Mapping[int, Sequence[Frames]]) -> Forecaster:
    def forecast(starts, state):
        for lead, members in leads.items():
            wanted = frames.times[starts] + lead * HOUR
            fields = [one.read(find_times(one.times, wanted)) for one in members]
            yield fields[0] if len(fields) == 1 else jnp.stack(fields)

    return forecast


def _run_forecasts(
    run: Run, own: Frames, frames: Frames, lead_hours: Sequence[int], mode: str, starts: np.ndarray
) -> Forecaster:
    """A run's forecasts in SI units, of the channels that are scored."""
    indices = find_times(own.times, frames.times[starts])
    model = run.forecaster(own, lead_hours=lead_hours, mode=mode, starts=indices)
    names = run.reference.channel_set.names
    chosen = tuple(names.index(name) for name in frames.reference.channel_set.names)
    size = frames.reference.channel_set.size

    def forecast(starts, state):
        there = find_times(own.times, frames.times[starts])
        for prediction in model(there, own.read(there)):
            yield _in_units(prediction, own.standardization, chosen, size)

    return forecast


@functools.partial(jax.jit, static_argnames=("chosen", "size"))
def _in_units(
    prediction: Float[Array, "b n lat lon"], s: Standardization, chosen: tuple[int, ...], size: int
) -> Float[Array, "b size lat lon"]:
    fields = reshard(to_physical(prediction, s), spec("batch", None, "lat", "lon"))
    some = jnp.stack([fields[:, index] for index in chosen], axis=1)
    whole = jnp.pad(some, ((0, 0), (0, size - len(chosen)), (0, 0), (0, 0)))
    return reshard(whole, spec("batch", "channel", "lat", "lon"))


def _choose_climatology(
    given: Data | None, truth: Archive | Source, reference: Reference, mesh: Mesh, method: str | None, valid: np.ndarray
) -> Climatology | Normals | Calendar | None:
    """The climatology that is given, or the truth's own where it has one that holds none of the `valid` times."""
    if given is None:
        normals = open_normals(truth, reference) if isinstance(truth, Archive) else None
        return normals if normals and not normals.holds_any(valid) else None
    archive = given if isinstance(given, Archive) else None
    if not isinstance(given, xr.Dataset | Archive | Source) and is_archive(given):
        archive = open_archive(given)
    if archive and (normals := open_normals(archive, reference)):
        if normals.holds_any(valid):
            raise ValueError(f"the climatology of {archive.path} is also of times that are scored: give another one")
        return normals
    if archive is None and not isinstance(given, Source):
        pieces, _ = open_raw([given])
        if all("dayofyear" in piece.dims and "hour" in piece.dims for piece in pieces):
            pieces = [part for piece in pieces for part in as_calendar(piece)]
            source = open_data_set(pieces, reference, step_hours=0)
            return Calendar(make_frames(source, reference, mesh, method=method))
    data = archive or open_data_set(given, reference)
    frames = make_frames(data, reference, mesh, method=method)
    before = np.flatnonzero((frames.times < valid[0]) | (frames.times > valid[-1]))
    return make_climatology(frames, indices=before, batch_size=8)


def _find_land(truth: Data, data: Archive | Source, reference: Reference) -> Float[np.ndarray, "lat lon"] | None:
    """The truth's land-sea mask on the grid of the scores; None where it has none."""
    if not isinstance(data, Archive) and not isinstance(truth, Source):
        data = open_source(truth, variables=reference.channel_set.names[:1], step_hours=0)
    land = data.static.get("land_sea_mask")
    if land is None or not data.grid.difference(reference.grid):
        return land
    return regrid_fields(land, data.grid, reference.grid, method="conservative")
