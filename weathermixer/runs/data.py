"""Any data set as a trained model's frames: an archive, or whatever `prepare` reads, straight and without preparing.

An archive is read by boxes, each process its own. Other sources are read whole by every process, frame by frame: right
for forecasts from analyses, slow for scores over years.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from weathermixer.archive.archive import Archive, is_archive, open_archive
from weathermixer.archive.frames import Frames, archive_frames
from weathermixer.archive.reference import Reference
from weathermixer.archive.standardization import make_standardization
from weathermixer.fields.regridding import regrid
from weathermixer.parallel.mesh import put
from weathermixer.sources.sources import Source, open_source

# an open data set, in pieces too, or the path or address of one
Data = str | os.PathLike | xr.Dataset | list[xr.Dataset] | Archive | Source


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


def make_frames(data: Archive | Source, reference: Reference, mesh: Mesh, *, method: str | None = None) -> Frames:
    """An open data set's frames for a model; `method` (of fields/regridding.py) brings a source on another grid to its.

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

    def read(indices: Int[np.ndarray, " time"]) -> Float[np.ndarray, "time stored lat lon"]:
        frames = data.read(indices)[:, chosen[there]]
        frames = frames if method is None else regrid(frames, data.grid, reference.grid, method=method)
        whole = np.full((len(indices), len(chosen), *reference.grid.shape), np.nan, np.float32)
        whole[:, there] = frames
        return whole

    # what is not there is not withheld from forecasts, as points are that a channel lacks
    lacking = dataclasses.replace(reference, fill=np.where(chosen < 0, np.nan, reference.fill))
    return Frames(
        name=data.name,
        source=data.name,
        times=data.times,
        reference=reference,
        mesh=mesh,
        standardization=make_standardization(lacking, mesh),
        read_stored=lambda indices: _place(read, indices, reference, mesh),
        absent=tuple(name for name, index in zip(reference.channel_set.stored_names, chosen) if index < 0),
    )


def _place(
    read: Callable[[np.ndarray], np.ndarray], indices: Int[np.ndarray, " b"], reference: Reference, mesh: Mesh
) -> Float[Array, "b n lat lon"]:
    """Frames in SI units as a global array; one that is asked for several times is read once."""
    channels = reference.channel_set
    unique, positions = np.unique(indices, return_inverse=True)
    whole = np.zeros((len(indices), channels.size, *reference.grid.shape), np.float32)
    whole[:, : len(channels.stored)] = read(unique)[positions]
    return put(whole, mesh, "batch", "channel", "lat", "lon")
