"""Scores of any forecasts against any analyses, on the same samples: runs, and files of whatever model.

    scores = score_forecasts({"ours": "runs/era5", "gfs": "gs://.../gfs.zarr"}, "era5.archive", lead_hours=[24, 72])

A forecast in a file is a source for each of its leads, whose times are those that it is valid at: names, units, levels
and orders are the sources room's. It is read in blocks, a lead of a few starts at a time.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
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
from weathermixer.fields import regridding
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel.mesh import make_mesh, sharding, spec, ways
from weathermixer.runs.data import Data, make_frames, open_data_set
from weathermixer.runs.run import Run, open_run, spread
from weathermixer.runs.workdir import CONFIG_FILE
from weathermixer.sources.formats import open_raw
from weathermixer.sources.selection import find_entries
from weathermixer.sources.sources import Source, open_source
from weathermixer.sources.times import LEADS
from weathermixer.verification import climatologies
from weathermixer.verification.climatologies import Calendar, Climatology
from weathermixer.verification.evaluation import Forecaster, Thresholds, evaluate
from weathermixer.verification.regions import region_names
from weathermixer.verification.statistics import DRY

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


class Placed(NamedTuple):
    """Forecasts beside the analyses: times of starts, a forecaster of some of these, and a word about it."""

    starts: np.ndarray
    make: Callable[[np.ndarray], Forecaster]
    how: str


def open_forecast(data: str | os.PathLike | xr.Dataset, **options: Any) -> ForecastFile:
    """Opens forecasts of WeatherBench 2's form, or of any that a source may have; `options` are open_source's.

    Raises ValueError where there are no leads.
    """
    pieces, _ = open_raw([data])
    name = "the dataset" if isinstance(data, xr.Dataset) else data
    select = dict(options.pop("select", None) or {})
    lead_name, entries = find_entries(pieces, LEADS)
    if lead_name is None:
        raise ValueError(f"{name} has no leads ({', '.join(LEADS)}): it holds analyses, or give it one of these")
    member_name, members = find_entries(pieces, [name for name in MEMBERS if name not in select])
    hours = {float(entry.rstrip("h")): entry for entry in entries}
    leads = {
        int(lead): [select | {lead_name: hours[lead]} | ({member_name: m} if m else {}) for m in members or [None]]
        for lead in sorted(hours)
        if lead > 0 and lead == int(lead)
    }
    if not leads:
        raise ValueError(f"{name} has the leads {', '.join(entries)} alone: none is a whole number of hours")
    some = next(iter(leads.values()))[0]
    return ForecastFile(pieces, leads, options, open_source(pieces, **options, select=some, static=(), step_hours=0))


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
    readings, truth = dict(readings or {}), _open_if_archive(truth)
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
    placed = {name: _place_file(file, frames, lead_hours, regrid) for name, file in files.items()}
    for name, run in runs.items():
        own, how = run.open_frames(run.open_data(truth), regrid=regrid), mode or run.settings.evaluation.mode
        placed[name] = _place_run(run, own, frames, lead_hours, how)
        notes += [f"{name}: {note}" for note in run.notes(lead_hours, how)]
    starts, note = _choose_starts(frames, {name: placed[name].starts for name in forecasts}, period)
    starts = spread(starts, max_starts)
    times = frames.times[starts]
    valid = np.unique(times[:, None] + np.array(lead_hours) * HOUR)
    options |= {"climatology": _choose_climatology(climatology, data, reference, mesh, regrid, valid)}
    options["seeps"] = _open_seeps(climatology, frames, batch_size) if seeps else None
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


def _open_if_archive(data: Data) -> Data:
    return open_archive(data) if isinstance(data, str | os.PathLike) and is_archive(data) else data


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


def _place_file(file: ForecastFile, frames: Frames, lead_hours: Sequence[int], regrid: str | None) -> Placed:
    def open_one(select: dict[str, Any]) -> Frames:
        data = open_data_set(file.pieces, frames.reference, **file.options, select=select, step_hours=0)
        return make_frames(data, frames.reference, frames.mesh, method=regrid)

    leads = {lead: [open_one(select) for select in file.leads[lead]] for lead in lead_hours}
    starts = [one.times - lead * HOUR for lead, members in leads.items() for one in members]

    def forecast(starts, state):
        for lead, members in leads.items():
            wanted = frames.times[starts] + lead * HOUR
            fields = [one.read(find_times(one.times, wanted)) for one in members]
            yield fields[0] if len(fields) == 1 else jnp.stack(fields)

    count = len(leads[lead_hours[0]])
    how = f" ({count} members)" if count > 1 else ""
    return Placed(functools.reduce(np.intersect1d, starts), lambda times: forecast, how)


def _place_run(run: Run, own: Frames, frames: Frames, lead_hours: Sequence[int], mode: str) -> Placed:
    """A run's forecasts in SI units, of the channels that are scored; `own` are the analyses as it sees them."""
    names, size = run.reference.channel_set.names, frames.reference.channel_set.size
    chosen = tuple(names.index(name) for name in frames.reference.channel_set.names)

    def make(times: np.ndarray) -> Forecaster:
        model = run.forecaster(own, lead_hours=lead_hours, mode=mode, starts=find_times(own.times, times))

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


def _choose_climatology(
    given: Data | None, truth: Archive | Source, reference: Reference, mesh: Mesh, method: str | None, valid: np.ndarray
) -> Climatology | Calendar | None:
    """The climatology that is given, or the truth's own where it has one that holds none of the `valid` times."""
    data = truth if given is None else _open_if_archive(given)
    own = climatologies.open_normals(data, reference, mesh) if isinstance(data, Archive) else None
    if own and not own.holds_any(valid):
        return own
    if given is None:
        return None
    if own:
        raise ValueError(f"the climatology of {data.path} is also of times that are scored: give another one")
    if pieces := _by_day(data):
        frames = make_frames(open_data_set(pieces, reference, step_hours=0), reference, mesh, method=method)
        return Calendar(frames, f"{frames.name}, by hour of day and day of year")
    frames = make_frames(open_data_set(data, reference), reference, mesh, method=method)
    outside = np.flatnonzero((frames.times < valid[0]) | (frames.times > valid[-1]))
    return climatologies.make_climatology(frames, indices=outside, batch_size=8)


def _by_day(data: Data | None) -> list[xr.Dataset]:
    """A WeatherBench 2 climatology by the times of a year; nothing where it is no such one."""
    pieces = [] if data is None or isinstance(data, Archive | Source) else open_raw([data])[0]
    if not all("dayofyear" in piece.dims and "hour" in piece.dims for piece in pieces):
        return []
    return [part for piece in pieces for part in climatologies.as_calendar(piece)]


def _open_seeps(climatology: Data | None, frames: Frames, batch_size: int) -> Thresholds:
    """What SEEPS needs; ValueError where no precipitation is scored, or the climatology has no thresholds of it."""
    channels, pieces = frames.reference.channel_set, _by_day(climatology)
    rain = [channel.variable for channel in channels.dynamic if channel.variable in DRY]
    kinds = ("seeps_threshold", "seeps_dry_fraction")
    lacking = [f"{name}_{kind}" for kind in kinds for name in rain if not any(f"{name}_{kind}" in p for p in pieces)]
    if lacking or not rain:
        what = f"the climatology has no {', '.join(lacking)}" if rain else f"none of {', '.join(DRY)} is scored"
        raise ValueError(
            f"seeps: {what}; leave it out, or give precipitation and WeatherBench 2's climatology of it "
            "(--climatology, as its 1990-2019_6h_64x32_equiangular_conservative.zarr)"
        )
    found = []
    for kind in kinds:
        source = open_source(pieces, variables=[f"{name}_{kind}" for name in rain], static=(), step_hours=0)
        own = {channel.variable: channel for channel in source.channels}
        dynamic = tuple(own.get(f"{channel.variable}_{kind}", channel) for channel in channels.dynamic)
        others = tuple(channel.name for channel in dynamic if channel.variable not in own)
        thresholds = dataclasses.replace(channels, dynamic=dynamic, output_only=others)
        reference = dataclasses.replace(frames.reference, channel_set=thresholds)
        found.append(make_frames(source, reference, frames.mesh))
    heavy, dry = found
    by_hour = climatologies.make_climatology(dry, indices=np.arange(len(dry.times)), batch_size=batch_size)
    amounts = channels.pad([DRY.get(channel.variable, np.nan) for channel in channels.dynamic], fill=np.nan)
    amounts = jax.device_put(amounts, sharding(frames.mesh, "channel"))
    return Thresholds(Calendar(heavy, "SEEPS"), by_hour.coefficients.mean(axis=0), amounts)


def _find_land(truth: Data, data: Archive | Source, reference: Reference) -> Float[np.ndarray, "lat lon"] | None:
    """The truth's land-sea mask on the grid of the scores; None where it has none."""
    if not isinstance(data, Archive) and not isinstance(truth, Source):
        data = open_source(truth, variables=reference.channel_set.names[:1], step_hours=0)
    land = data.static.get("land_sea_mask")
    if land is None or not data.grid.difference(reference.grid):
        return land
    return regridding.regrid(land, data.grid, reference.grid, method="conservative")
