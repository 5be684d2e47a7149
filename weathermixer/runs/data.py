"""What a run trains on; and any data as a trained model's frames: an archive, or, unprepared, what `prepare` reads.

An archive is read by boxes, each process its own. Other sources are read whole by every process, frame by frame: right
for forecasts from analyses, slow for scores over years. What forecasts are measured against is opened here too:
climatologies, and the thresholds of SEEPS.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
import xarray as xr
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

import weathermixer
from weathermixer.archive.archive import FORMAT_VERSION, Archive, is_archive, open_archive
from weathermixer.archive.frames import Frames, archive_frames
from weathermixer.archive.reference import Reference
from weathermixer.archive.sampling import in_period
from weathermixer.archive.standardization import make_standardization
from weathermixer.archive.storage import cache_folder
from weathermixer.fields.grid import regrid
from weathermixer.parallel.distributed import wait_for_all
from weathermixer.parallel.mesh import put, sharding
from weathermixer.runs.settings import Settings
from weathermixer.simulation.simulate import Settings as Simulation
from weathermixer.simulation.simulate import simulate
from weathermixer.sources.formats import open_raw
from weathermixer.sources.sources import Source, open_source
from weathermixer.verification import climatologies
from weathermixer.verification.climatologies import Calendar, Climatology
from weathermixer.verification.evaluation import Thresholds
from weathermixer.verification.statistics import DRY

# an open data set, in pieces too, or the path or address of one
Data = str | os.PathLike | xr.Dataset | list[xr.Dataset] | Archive | Source


def open_training_data(settings: Settings, data: str | None) -> Archive:
    """The archive at `data`, or the one made of settings.data.source, on first use, in the cache.

    Raises ValueError where neither is there.
    """
    if data:
        return open_archive(data)
    source = os.path.expandvars(settings.data.source)
    if not source:
        raise ValueError(
            "this config has no data of its own: give --data=ARCHIVE, made by python -m experiments.prepare"
        )
    if "$" in source:
        raise ValueError(f"config.data.source={settings.data.source!r}: the environment variable in it is not set")
    simulated = source == "simulated"
    if not simulated and "://" not in source and not os.path.exists(source):
        raise ValueError(f"config.data.source={source!r} is not there: give its path, or --data=ARCHIVE")
    made_of = dataclasses.asdict(Simulation()) if simulated else os.path.abspath(source)
    name = hashlib.sha256(json.dumps([made_of, weathermixer.__version__]).encode()).hexdigest()[:8]
    cache = cache_folder()
    path = cache / f"{pathlib.Path(source).stem}-{name}-v{FORMAT_VERSION}.archive"
    if jax.process_index() == 0 and not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with open(f"{path}.lock", "w") as lock:  # of two runs one makes it, the other waits
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another run, which makes {path}", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                print(f"making {path}, once", flush=True)
                # only here: what makes data takes as long to import as all else together
                from weathermixer.prepare.prepare import prepare_archive

                prepare_archive(open_source(simulate(cache / f"simulation-{name}.zarr") if simulated else source), path)
    wait_for_all(f"{path} is made")  # by the first process
    return open_archive(path)


def open_data_set(data: Data, reference: Reference, *, scored: bool = False, **options: Any) -> Archive | Source:
    """Opens an archive or, with some of open_source's options, a source with a model's channels, by their names.

    A source is to be `scored`, at the times that an archive of it would have, or to start forecasts from, at any hour;
    then output-only channels are left out, of which sums such as precipitation lack the hours before the first time.
    A source with the south pole below a grid that is otherwise the model's loses that row, as `--crop-south-pole` does.
    Raises ValueError that names what is missing and what there is instead.
    """
    if isinstance(data, Archive | Source):
        return data
    if not isinstance(data, xr.Dataset | list) and is_archive(data):
        if given := [name for name, value in options.items() if value]:
            raise ValueError(f"{data} is an archive, which needs no {', '.join(given)}: these are for other sources")
        return open_archive(data)
    names, diagnosed = reference.channel_set.stored_names, () if scored else reference.channel_set.output_only
    options |= dict(variables=[name for name in names if name not in diagnosed], static=())
    options |= dict(step_hours=None if scored else 0)
    source = open_source(data, **options)
    rows = source.grid.shape[0]
    if rows == reference.grid.shape[0] + 1 and source.grid.latitude[-1] < -90 + 1e-3:
        return open_source(data, **options, crop_south_pole=True)
    return source


def open_if_archive(data: Data) -> Data:
    """An archive where the path is that of one; anything else as it is."""
    return open_archive(data) if isinstance(data, str | os.PathLike) and is_archive(data) else data


def make_frames(data: Archive | Source, reference: Reference, mesh: Mesh, *, method: str | None = None) -> Frames:
    """An open data set's frames for a model; `method` (of fields/grid.py) brings a source on another grid to its.

    A source need not have output-only channels. Raises as `Reference.find_channels` and `check_grid` do, also for
    another grid of an archive.
    """
    if isinstance(data, Archive):
        return archive_frames(data, reference, mesh)
    chosen = reference.find_channels(data.name, data.channels, optional=reference.channel_set.output_only)
    there = np.flatnonzero(chosen >= 0)
    if method is None or not reference.grid.difference(data.grid):
        reference.check_grid(data.name, data.grid)
        method = None

    def read(indices: Int[np.ndarray, " b"]) -> Float[Array, "b n lat lon"]:
        unique, positions = np.unique(indices, return_inverse=True)  # one that is asked for several times is read once
        frames = data.read(unique)[:, chosen[there]]
        frames = frames if method is None else regrid(frames, data.grid, reference.grid, method=method)
        whole = np.zeros((len(indices), reference.channel_set.size, *reference.grid.shape), np.float32)
        whole[:, there], whole[:, np.flatnonzero(chosen < 0)] = frames[positions], np.nan
        return put(whole, mesh, "batch", "channel", "lat", "lon")

    # what is not there is not withheld from forecasts, as points are that a channel lacks
    lacking = dataclasses.replace(reference, fill=np.where(chosen < 0, np.nan, reference.fill))
    return Frames(
        name=data.name,
        source=data.name,
        times=data.times,
        reference=reference,
        mesh=mesh,
        standardization=make_standardization(lacking, mesh),
        read_stored=read,
        absent=tuple(name for name, index in zip(reference.channel_set.stored_names, chosen) if index < 0),
    )


def choose_climatology(
    data: Archive | Source,
    frames: Frames,
    scored: np.ndarray,
    training: Int[np.ndarray, " time"] | None,
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> Climatology | Calendar | None:
    """A data set's own climatology, where that is of none of the times `scored`, else one of its frames `training`.

    None where these are None too; ValueError where they are no frames.
    """
    own = climatologies.open_normals(data, frames.reference, frames.mesh) if isinstance(data, Archive) else None
    if own and not in_period(scored, own.period).any():
        return own
    if own and jax.process_index() == 0:
        instead = "there is none" if training is None else "one of other times takes its place"
        print(
            f"the climatology in {frames.name} is also of times that are scored: {instead} (prepare "
            "--statistics-period keeps times out)"
        )
    if training is None:
        return None
    return climatologies.make_climatology(frames, indices=training, batch_size=batch_size, progress=progress)


def open_climatology(
    given: Data | None, data: Archive | Source, frames: Frames, scored: np.ndarray, *, method: str | None
) -> Climatology | Calendar | None:
    """WeatherBench 2's climatology, or that of any data set as `choose_climatology`, fitted to times not `scored`.

    Where none is given it is the own one of the data that scores are measured against, or none.
    """
    if given is None:
        return choose_climatology(data, frames, scored, None)
    reference, mesh = frames.reference, frames.mesh
    if pieces := _by_day(given := open_if_archive(given)):
        frames = make_frames(open_data_set(pieces, reference, step_hours=0), reference, mesh, method=method)
        return Calendar(frames, f"{frames.name}, by hour of day and day of year")
    data = open_data_set(given, reference)
    frames = make_frames(data, reference, mesh, method=method)
    outside = np.flatnonzero((frames.times < scored.min()) | (frames.times > scored.max()))
    return choose_climatology(data, frames, scored, outside)


def _by_day(data: Data | None) -> list[xr.Dataset]:
    """A WeatherBench 2 climatology by the times of a year; nothing where it is no such one."""
    pieces = [] if data is None or isinstance(data, Archive | Source) else open_raw([data])[0]
    if not all("dayofyear" in piece.dims and "hour" in piece.dims for piece in pieces):
        return []
    return [part for piece in pieces for part in climatologies.as_calendar(piece)]


def open_seeps(climatology: Data | None, frames: Frames, batch_size: int) -> Thresholds:
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
