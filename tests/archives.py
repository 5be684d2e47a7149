"""Small archives for tests, filled with whatever fields a test wants to find again."""

import numpy as np

from weathermixer.archive.archive import Archive, Statistics, open_archive
from weathermixer.archive.frames import Frames, archive_frames
from weathermixer.archive.layout import Layout
from weathermixer.archive.reference import make_reference
from weathermixer.fields.grid import Grid
from weathermixer.fields.variables import ChannelSet
from weathermixer.prepare.writer import create_archive, publish, write_statistics


def make_frames(archive: Archive, channel_set: ChannelSet, mesh) -> Frames:
    """The archive's frames for a model with its own statistics."""
    return archive_frames(archive, make_reference(archive, channel_set), mesh)


def make_grid(lat: int, lon: int) -> Grid:
    """Equiangular, without poles."""
    return Grid(90 - (np.arange(lat) + 0.5) * 180 / lat, np.arange(lon) * 360 / lon)


def make_archive(
    path, fields, *, times, channel_set: ChannelSet, static=None, dtype="float32", missing=None
) -> Archive:
    """Publishes `fields` [time, channel, lat, lon] in SI units; float32 keeps them as they are.

    `missing` are the counts in the statistics; None: those that there are.
    """
    _, channels, lat, lon = fields.shape
    mean, std = np.nanmean(fields, axis=(0, 2, 3)), np.nanstd(fields, axis=(0, 2, 3))
    scale, offset = (np.ones(channels), np.zeros(channels)) if dtype == "float32" else (std, mean)
    store = create_archive(
        path,
        times=np.asarray(times, "datetime64[ns]"),
        grid=make_grid(lat, lon),
        channels=channel_set.stored,
        static=static or {},
        scale=scale,
        offset=offset,
        layout=Layout(
            shape=fields.shape, static=len(static or {}), times_per_shard=max(1, len(times) // 4), dtype=dtype
        ),
        attributes={"source": "test", "step_hours": 6},
    )
    stored = (fields - offset[:, None, None]) / scale[:, None, None]
    store[...].write(stored.astype(store.dtype.numpy_dtype)).result()
    tendency = np.nanstd(np.diff(fields, axis=0), axis=(0, 2, 3)) if len(times) > 1 else std
    extremes = np.nanmin(fields, axis=(0, 2, 3)), np.nanmax(fields, axis=(0, 2, 3))
    missing = np.isnan(fields).sum(axis=(0, 2, 3)) if missing is None else np.asarray(missing)
    write_statistics(path, Statistics(mean, std, tendency, *extremes, missing))
    publish(path)
    return open_archive(path)
