"""The same made-up weather in three stores, and ways to read a device's box of it: for the loader's benchmark."""

import concurrent.futures
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import xarray
from jax.sharding import Mesh

from weathermixer.data.archive import Archive, Statistics, open_archive
from weathermixer.data.boxes import Box
from weathermixer.data.reader import Reader
from weathermixer.data.writer import create_archive, publish, write_statistics
from weathermixer.grid import Grid
from weathermixer.variables import LEVELS_HPA, ChannelSet

SURFACE = ("mean_sea_level_pressure", "surface_pressure", "10m_u_component_of_wind", "10m_v_component_of_wind")
UPPER = ("geopotential", "specific_humidity", "temperature", "u_component_of_wind", "v_component_of_wind")
COMPRESSORS = ("none", "zstd")


def make_frames(times: int, channels: int, lat: int, lon: int) -> Iterator[np.ndarray]:
    """Standardized frames [channel, lat, lon] float32: large waves and fine noise, so that zstd finds about a third."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((lat, lon), np.float32)
    waves = [_smooth(rng, lat, lon, size) for size in (6, 24, 96)]
    for time in range(times):
        frame = np.empty((channels, lat, lon), np.float32)
        for channel in range(channels):
            shift = 7 * time + 13 * channel
            wave = sum(np.roll(wave, shift * (2 * i + 1), axis=1) / (i + 1) for i, wave in enumerate(waves))
            frame[channel] = wave + 0.003 * np.roll(noise, (shift, 3 * shift), axis=(0, 1))
        yield frame


def _smooth(rng: np.random.Generator, lat: int, lon: int, size: int) -> np.ndarray:
    coarse = rng.standard_normal((size, 2 * size))
    rows = [np.interp(np.linspace(0, size - 1, lat), np.arange(size), column) for column in coarse.T]
    wide = np.array(rows).T
    full = [np.interp(np.linspace(0, 2 * size - 1, lon), np.arange(2 * size), row) for row in wide]
    return np.array(full, np.float32)


def make_channels(channels: int) -> ChannelSet:
    """Surface variables, then upper-air ones on 13 levels, then as many more levels as are asked for."""
    names = [*SURFACE, *(f"{name}_{level}" for name in UPPER for level in LEVELS_HPA)]
    names += [f"vertical_velocity_{level}" for level in range(1, 1 + max(0, channels - len(names)))]
    return ChannelSet.from_names(names[:channels])


def make_stores(folder: Path, *, times: int, channels: int, lat: int, lon: int, domain: int, tensor: int) -> None:
    """Writes archive-none, archive-zstd and globe.zarr: float32, a chunk per time, variable and globe, as is common."""
    frames = list(make_frames(times, channels, lat, lon))
    for compressor in COMPRESSORS:
        path = folder / f"archive-{compressor}"
        make_archive(path, frames, (lat, lon), channels, domain=domain, tensor=tensor, compressor=compressor)
    for time, frame in enumerate(frames):
        dataset = _dataset(frame[None], _times(times)[time : time + 1], make_grid(lat, lon), make_channels(channels))
        options = dict(append_dim="time") if time else dict(mode="w", zarr_format=2, consolidated=True)
        dataset.to_zarr(folder / "globe.zarr", **options)


def make_archive(
    path: Path,
    frames: Sequence[np.ndarray],
    shape: tuple[int, int],
    channels: int,
    *,
    domain: int,
    tensor: int,
    compressor: str = "none",
) -> Archive:
    """An archive of these frames; of one time that was never written where there are none."""
    one = np.ones(channels)
    store = create_archive(
        path, times=_times(max(1, len(frames))), grid=make_grid(*shape), channels=make_channels(channels).dynamic,
        static={}, scale=one, offset=0 * one, domain=domain, tensor=tensor, times_per_shard=1,
        attributes={"step_hours": 6, "source": "made up"}, compressor=compressor,
    )  # fmt: skip
    for time, frame in enumerate(frames):
        store[time].write(frame.astype(np.float16)).result()
    write_statistics(path, Statistics(0 * one, one, one, -one, one, np.zeros(channels, np.int64)))
    publish(path)
    return open_archive(path)


def make_grid(lat: int, lon: int) -> Grid:
    """Equiangular, without poles."""
    return Grid(90 - (np.arange(lat) + 0.5) * 180 / lat, np.arange(lon) * 360 / lon)


def _times(count: int) -> np.ndarray:
    return np.datetime64("2000-01-01", "ns") + np.arange(count) * np.timedelta64(6, "h")


def _dataset(frames: np.ndarray, when: np.ndarray, grid: Grid, channel_set: ChannelSet) -> xarray.Dataset:
    dataset = xarray.Dataset(coords=dict(time=when, latitude=grid.latitude, longitude=grid.longitude))
    dataset.time.encoding["units"] = "hours since 1970-01-01"
    for name, (first, last) in _extents(channel_set).items():
        values = frames[:, first:last]
        upper = channel_set.dynamic[first].level_hpa is not None
        dims = ("time", f"level_{name}", "latitude", "longitude") if upper else ("time", "latitude", "longitude")
        dataset[name] = (dims, values if upper else values[:, 0])
        dataset[name].encoding["chunks"] = dataset[name].shape
    return dataset


def _extents(channel_set: ChannelSet) -> dict[str, tuple[int, int]]:
    """First and last + 1 channel of each variable."""
    extents: dict[str, tuple[int, int]] = {}
    for index, channel in enumerate(channel_set.dynamic):
        extents[channel.variable] = (extents.get(channel.variable, (index, 0))[0], index + 1)
    return extents


def archive_samples(reader: Reader, *, ahead: int) -> Iterator[int]:
    """Reads pairs of frames as the loader does, `ahead` more in flight, onto a device; yields their bytes."""
    here = jax.local_devices()[0]
    pending: deque = deque()
    try:
        for first in _forever(len(reader.archive.times) - 1):
            pending.append(reader.start([np.array([first]), np.array([first + 1])]))
            if len(pending) > ahead:
                oldest = pending.popleft()
                arrays = reader.wait(oldest, threading.Event())
                jax.block_until_ready([jax.device_put(buffer, here) for parts in arrays for _, buffer in parts])
                yield oldest.bytes_needed
    finally:  # nothing of this source's turn is left to the next one's
        for rest in pending:
            reader.wait(rest, threading.Event())


def raw_samples(archive: Archive, box: Box, *, threads: int) -> Iterator[int]:
    """Reads the bytes of the same chunks with preadv into the same buffer again and again, as dd does."""
    frames = [_chunk_ranges(archive, time, box) for time in range(len(archive.times))]
    buffer = np.zeros(max(sum(length for _, length in ranges) for _, ranges in frames), np.uint8)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for first in _forever(len(frames) - 1):
            total = 0
            for path, ranges in frames[first : first + 2]:
                starts = np.cumsum([0, *(length for _, length in ranges)])
                file = os.open(path, os.O_RDONLY)
                parts = [(file, buffer[a : a + n], at) for a, (at, n) in zip(starts[:-1], ranges, strict=True)]
                total += sum(pool.map(lambda part: os.preadv(part[0], [part[1]], part[2]), parts))
                os.close(file)
            yield total


def _chunk_ranges(archive: Archive, time: int, box: Box) -> tuple[Path, list[tuple[int, int]]]:
    """A shard's file and the (offset, length) of the chunks that hold a box, adjacent ones joined; from its index."""
    _, group, band, _ = archive.store.chunk_layout.read_chunk.shape
    path = Path(archive.path, "fields", "c", str(time), "0", "0", "0")
    counts = (-(-len(archive.channels) // group), archive.grid.shape[0] // band)
    with path.open("rb") as file:
        file.seek(-(4 + 16 * counts[0] * counts[1]), os.SEEK_END)
        index = np.frombuffer(file.read(16 * counts[0] * counts[1]), np.uint64).reshape(*counts, 2)
    chosen = index[
        box.channels[0] // group : -(-box.channels[1] // group), box.lats[0] // band : -(-box.lats[1] // band)
    ]
    joined: list[tuple[int, int]] = []
    for offset, length in sorted(map(tuple, chosen.reshape(-1, 2).tolist())):
        if joined and sum(joined[-1]) == offset:
            joined[-1] = (joined[-1][0], joined[-1][1] + length)
        else:
            joined.append((offset, length))
    return path, joined


def xarray_samples(folder: Path, channel_set: ChannelSet, box: Box, *, dask: bool) -> Iterator[int]:
    """Loads the same box of pairs of frames through xarray and zarr-python, lazily indexed or through dask."""
    dataset = xarray.open_zarr(folder / "globe.zarr", chunks={} if dask else None)
    extents = _extents(channel_set)
    for first in _forever(dataset.sizes["time"] - 1):
        total = 0
        for name, (start, stop) in extents.items():
            begin, end = max(start, box.channels[0]), min(stop, box.channels[1])
            if begin < end:
                part = dataset[name].isel(time=slice(first, first + 2), latitude=slice(*box.lats))
                if part.ndim == 4:
                    part = part[:, begin - start : end - start]
                total += part.load().nbytes
        yield total


def _forever(count: int) -> Iterator[int]:
    while True:
        yield from range(count)


def drop_from_page_cache(folder: Path) -> None:
    """Asks the kernel to forget the files' pages, so that the next read is from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def open_sources(folder: Path, mesh: Mesh, device: jax.Device, box: Box) -> dict[str, Callable[[bool], Iterator[int]]]:
    """What is compared, by name: functions of `cold` that yield the bytes of one sample after the other."""
    archives = {compressor: open_archive(str(folder / f"archive-{compressor}")) for compressor in COMPRESSORS}
    channel_set = ChannelSet(archives["none"].channels)
    sources: dict[str, Callable[[bool], Iterator[int]]] = {}
    for name, archive in archives.items():
        reader = Reader(archive, channel_set, mesh, 1, spare=2 * 4, devices=[device])
        sources[f"archive, {name}"] = lambda cold, reader=reader: archive_samples(reader, ahead=0 if cold else 2)
        sources[f"its bytes, {name}"] = lambda cold, archive=archive: raw_samples(
            archive, box, threads=len(os.sched_getaffinity(0))
        )
    for name, dask in (("xarray", False), ("xarray, dask", True)):
        sources[name] = lambda cold, dask=dask: xarray_samples(folder, channel_set, box, dask=dask)
    return sources
