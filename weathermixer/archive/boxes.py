"""Boxes: what each device holds of a global array [batch, channel, lat, lon], and what reading them costs.

A box is read from inner chunks of the archive; a chunk that is touched is read whole. On a mesh whose `domain` and
`tensor` divide the ones that the archive was made for, boxes are unions of chunks and nothing is read in vain.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

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
    batch, channels, lat, lon = zip(("batch", "channel", "lat", "lon"), shape, strict=True)
    check_divides(mesh, batch=batch, channels=channels, latitude=lat, longitude=lon)
    return shape


def find_boxes(mesh: Mesh, shape: Shape, devices: Iterable[jax.Device] | None = None) -> dict[Box, list[jax.Device]]:
    """The distinct boxes of some devices, this process's by default, each with the devices that hold it."""
    where = sharding(mesh, "batch", "channel", "lat", "lon").devices_indices_map(shape)
    boxes: dict[Box, list[jax.Device]] = {}
    for device in mesh.local_devices if devices is None else devices:
        rows, channels, lats = (part.indices(size)[:2] for part, size in zip(where[device][:3], shape[:3], strict=True))
        boxes.setdefault(Box(rows, channels, lats), []).append(device)
    return boxes


def count_bytes(archive: Archive, channel_set: ChannelSet, boxes: Iterable[Box]) -> tuple[int, int]:
    """(bytes needed, bytes read) by a process for one frame of its boxes, as stored before compression.

    Needed are the distinct boxes of channels and latitudes, and read are the chunks that hold any of it, each once.
    """
    _, group, band, lon = archive.store.chunk_layout.read_chunk.shape
    chosen, needed, chunks = archive.channel_indices(channel_set.stored_names), 0, set()
    for channels, lats in {(box.channels, box.lats) for box in boxes}:
        wanted = chosen[slice(*channels)]
        needed += len(wanted) * (lats[1] - lats[0])
        bands = range(lats[0] // band, -(-lats[1] // band))
        chunks.update(itertools.product(set((wanted // group).tolist()), bands))
    row = lon * archive.store.dtype.numpy_dtype.itemsize
    return row * needed, row * band * sum(min(group, len(archive.channels) - index * group) for index, _ in chunks)


def read_amplification(
    archive: Archive, channel_set: ChannelSet, mesh: Mesh, *, processes: Sequence[Sequence[jax.Device]] | None = None
) -> float:
    """Bytes read over bytes needed in the worst process; by default each device is a process of its own."""
    shape = frames_shape(archive, channel_set, mesh, ways(mesh, "batch"))
    ratios = [1.0]
    for devices in [[device] for device in mesh.devices.flat] if processes is None else processes:
        needed, read = count_bytes(archive, channel_set, find_boxes(mesh, shape, devices))
        if needed:
            ratios.append(read / needed)
    return max(ratios)
