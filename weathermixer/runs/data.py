"""Any data set as a trained model's frames: an archive, or whatever `prepare` reads, straight and without preparing.

An archive is read by boxes, each process its own. Other sources are read whole by every process, frame by frame: right
for forecasts from analyses, slow for scores over years.
"""

import os

import jax
import numpy as np
import xarray as xr
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from weathermixer.archive.archive import Archive, is_archive, open_archive
from weathermixer.archive.frames import Frames, archive_frames
from weathermixer.archive.reference import Reference
from weathermixer.archive.standardization import make_standardization
from weathermixer.parallel.mesh import sharding
from weathermixer.prepare.sources import Source, open_source

# an open data set, or the path or address of one
Data = str | os.PathLike | xr.Dataset | Archive | Source


def open_data_set(data: Data, reference: Reference) -> Archive | Source:
    """Opens an archive or a source with a model's channels, by their names; whole steps of 6 h, or the source's own.

    A source with the south pole below a grid that is otherwise the model's loses that row, as `--crop_south_pole` does.
    Raises ValueError that names what is missing and what there is instead.
    """
    if isinstance(data, Archive | Source):
        return data
    if not isinstance(data, xr.Dataset) and is_archive(data):
        return open_archive(data)
    wanted = dict(variables=reference.channel_set.stored_names, static=())
    source = open_source(data, **wanted)
    rows = source.grid.shape[0]
    if rows == reference.grid.shape[0] + 1 and source.grid.latitude[-1] < -90 + 1e-3:
        return open_source(data, **wanted, crop_south_pole=True)
    return source


def make_frames(data: Archive | Source, reference: Reference, mesh: Mesh) -> Frames:
    """An open data set's frames for a model; raises as `Reference.find_channels` does."""
    if isinstance(data, Archive):
        return archive_frames(data, reference, mesh)
    chosen = reference.find_channels(data.name, data.channels, data.grid)
    return Frames(
        name=data.name,
        source=data.name,
        times=data.times,
        reference=reference,
        mesh=mesh,
        standardization=make_standardization(reference, mesh),
        read_stored=lambda indices: _read(data, reference, mesh, indices, chosen),
    )


def _read(
    source: Source,
    reference: Reference,
    mesh: Mesh,
    indices: Int[np.ndarray, " b"],
    chosen: Int[np.ndarray, " stored"],
) -> Float[Array, "b n lat lon"]:
    """A source's frames in SI units as a global array."""
    channels = reference.channel_set
    unique, positions = np.unique(indices, return_inverse=True)
    frames = source.read(unique)[:, chosen]
    whole = np.zeros((len(indices), channels.size, *reference.grid.shape), np.float32)
    whole[:, : len(channels.stored)] = frames[positions]
    cut = sharding(mesh, "batch", "channel", "lat", "lon")
    return jax.make_array_from_callback(whole.shape, cut, lambda box: whole[box])
