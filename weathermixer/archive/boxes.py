"""Boxes: what each device holds of a global array [batch, channel, lat, lon], and what reading them costs.

A box is read from inner chunks of the archive; a chunk that is touched is read whole. On a mesh whose `domain` and
`tensor` divide the ones that the archive was made for, boxes are unions of chunks and nothing is read in vain.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from weathermixer.archive.archive import Archive
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel.mesh import check_divides, sharding, ways

Shape = tuple[int, int, int, int]


class Box(NamedTuple):
    """Half-open ranges of samples, channels and latitude rows; all longitudes."""

    rows: tuple[int, int]
    channels: tuple[int, int]
    lats: tuple[int, int]


def frames_shape(archive: Archive, channel_set: ChannelSet, mesh: Mesh, batch_size: int) -> Shape:
    """The global shape of a batch of frames; ValueError where the mesh does not divide it."""
    shape = (batch_size, channel_set.size, *archive.grid.shape)
    names = ("batch", "channel", "lat", "lon")
    check_divides(
        mesh, **dict(zip(("batch", "channels", "latitude", "longitude"), zip(names, shape, strict=True), strict=True))
    )
    return shape


def find_boxes(mesh: Mesh, shape: Shape, devices: Iterable[jax.Device] | None = None) -> dict[Box, list[jax.Device]]:
    """The distinct boxes of some devices, this process's by default, each with the devices that hold it."""
    where = sharding(mesh, "batch", "channel", "lat", "lon").devices_indices_map(shape)
    wanted = mesh.local_devices if devices is None else devices
    boxes: dict[Box, list[jax.Device]] = {}
    for device in wanted:
        rows, channels, lats = (part.indices(size)[:2] for part, size in zip(where[device][:3], shape[:3], strict=True))
        boxes.setdefault(Box(rows, channels, lats), []).append(device)
    return boxes


def needed_bytes(archive: Archive, channel_set: ChannelSet, boxes: Iterable[Box]) -> int:
    """Bytes, as stored before compression, that one frame in each distinct box of channels and latitudes holds."""
    row = archive.grid.shape[1] * archive.store.dtype.numpy_dtype.itemsize
    held = len(channel_set.stored)
    regions = {(box.channels, box.lats) for box in boxes}
    points = (max(0, min(c[1], held) - c[0]) * (lats[1] - lats[0]) for c, lats in regions)
    return row * sum(points)


def touched_bytes(archive: Archive, channel_set: ChannelSet, boxes: Iterable[Box]) -> int:
    """Bytes, as stored before compression, of the chunks that hold any of it: what a process reads for one frame.

    Boxes of one process that share a chunk count it once, as they are read together.
    """
    _, group, band, lon = archive.store.chunk_layout.read_chunk.shape
    chosen = archive.channel_indices(channel_set.stored_names)
    chunks = set()
    for box in boxes:
        groups = set((chosen[box.channels[0] : box.channels[1]] // group).tolist())
        bands = range(box.lats[0] // band, -(-box.lats[1] // band)) if groups else ()
        chunks.update(itertools.product(groups, bands))
    row = lon * archive.store.dtype.numpy_dtype.itemsize
    last = len(archive.channels)
    return row * band * sum(min(group, last - index * group) for index, _ in chunks)


def read_amplification(
    archive: Archive, channel_set: ChannelSet, mesh: Mesh, *, processes: Sequence[Sequence[jax.Device]] | None = None
) -> float:
    """Bytes read over bytes needed in the worst process; by default each device is a process of its own."""
    shape = frames_shape(archive, channel_set, mesh, ways(mesh, "batch"))
    ratios = [1.0]
    for devices in [[device] for device in mesh.devices.flat] if processes is None else processes:
        boxes = find_boxes(mesh, shape, devices)
        if needed := needed_bytes(archive, channel_set, boxes):
            ratios.append(touched_bytes(archive, channel_set, boxes) / needed)
    return max(ratios)


def as_slice(indices: Int[np.ndarray, " n"]) -> slice | Int[np.ndarray, " n"]:
    """A slice where the indices are consecutive, which is read without a gather."""
    if np.all(np.diff(indices) == 1):
        return slice(int(indices[0]), int(indices[-1]) + 1)
    return indices
