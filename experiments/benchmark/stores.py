"""The same made-up weather in three stores, and ways to read a device's box of it: for the loader's benchmark."""

import concurrent.futures
import contextlib
import functools
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import xarray
from jax.sharding import Mesh

from weathermixer.archive import storage
from weathermixer.archive.archive import Archive, Statistics, open_archive
from weathermixer.archive.boxes import Box
from weathermixer.archive.layout import COMPRESSORS
from weathermixer.archive.reader import Reader
from weathermixer.fields.grid import Grid
from weathermixer.fields.variables import LEVELS_HPA, ChannelSet
from weathermixer.parallel.mesh import ways
from weathermixer.prepare.writer import create_archive, publish, write_statistics

SURFACE = ("mean_sea_level_pressure", "surface_pressure", "10m_u_component_of_wind", "10m_v_component_of_wind")
UPPER = ("geopotential", "specific_humidity", "temperature", "u_component_of_wind", "v_component_of_wind")
AHEAD = 2  # samples in flight beside the one that is waited for, as the training's loader has them
PIECE_BYTES = 8 * 2**20  # of a plain read
Read = Callable[[int], None]


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
    """Writes an archive per compressor, and globe.zarr: float32, a chunk per time, variable and globe, as is common."""
    frames = list(make_frames(times, channels, lat, lon))
    for compressor in COMPRESSORS:
        path = folder / f"archive-{compressor}"
        make_archive(path, frames, (lat, lon), channels, domain=domain, tensor=tensor, compressor=compressor)
    for time, frame in enumerate(frames[:2]):  # nothing of a pair is kept, so one pair does
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
    """An archive of these frames."""
    one = np.ones(channels)
    store = create_archive(
        path, times=_times(len(frames)), grid=make_grid(*shape), channels=make_channels(channels).dynamic,
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
    for name, (first, last) in find_extents(channel_set).items():
        values = frames[:, first:last]
        upper = channel_set.dynamic[first].level_hpa is not None
        dims = ("time", f"level_{name}", "latitude", "longitude") if upper else ("time", "latitude", "longitude")
        dataset[name] = (dims, values if upper else values[:, 0])
        dataset[name].encoding["chunks"] = dataset[name].shape
    return dataset


def find_extents(channel_set: ChannelSet) -> dict[str, tuple[int, int]]:
    """First and last + 1 channel of each variable."""
    extents: dict[str, tuple[int, int]] = {}
    for index, channel in enumerate(channel_set.dynamic):
        extents[channel.variable] = (extents.get(channel.variable, (index, 0))[0], index + 1)
    return extents


def read_archive(reader: Reader, count: int, *, ahead: int) -> None:
    """Reads pairs of frames as the loader does, `ahead` more in flight, onto a device, to the last."""
    here = jax.local_devices()[0]
    pending: deque = deque()

    def finish() -> None:
        arrays = reader.wait(pending.popleft(), threading.Event())
        jax.block_until_ready([jax.device_put(buffer, here) for parts in arrays for _, buffer in parts])

    for first in _pairs(len(reader.archive.times), count):
        pending.append(reader.start([np.array([first]), np.array([first + 1])]))
        if len(pending) > ahead:
            finish()
    while pending:
        finish()


def read_amplification(archive: Archive, mesh: Mesh, device: jax.Device) -> float:
    """Bytes that TensorStore reads for a batch of one frame in a device's box, over the bytes needed."""
    samples = ways(mesh, "batch")
    reader = Reader(archive, ChannelSet(archive.channels), mesh, samples, devices=[device])
    before = storage.bytes_read()
    pending = reader.start([np.zeros(samples, int)])
    reader.wait(pending, threading.Event())
    return (storage.bytes_read() - before) / pending.bytes_needed


class Raw:
    """Plain reads of the bytes of the same chunks: preadv, a thread per core, into the memory of AHEAD + 1 samples."""

    def __init__(self, archive: Archive, box: Box):
        self._frames = [_pieces(archive, time, box) for time in range(len(archive.times))]
        self._size = max(sum(length for _, length in pieces) for _, pieces in self._frames)
        self._buffers = itertools.cycle(np.zeros((AHEAD + 1, 2, self._size), np.uint8))

    def read(self, count: int) -> None:
        with (
            concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
            contextlib.ExitStack() as files,
        ):
            for first in _pairs(len(self._frames), count):
                parts = []
                for (path, pieces), buffer in zip(self._frames[first : first + 2], next(self._buffers)):
                    file = files.enter_context(path.open("rb", buffering=0))
                    starts = np.cumsum([0, *(length for _, length in pieces)])
                    parts += [(file.fileno(), [buffer[a : a + n]], at) for a, (at, n) in zip(starts, pieces)]
                found = sum(pool.map(lambda part: os.preadv(*part), parts))
                if found != sum(len(part[0]) for _, part, _ in parts):
                    raise OSError(f"{path}: only {found} bytes could be read")


def _pieces(archive: Archive, time: int, box: Box) -> tuple[Path, list[tuple[int, int]]]:
    """A shard's file and the (offset, length) of the chunks that hold a box, neighbours joined; from its index."""
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
        if joined and sum(joined[-1]) == offset and joined[-1][1] + length <= PIECE_BYTES:
            joined[-1] = (joined[-1][0], joined[-1][1] + length)
        else:
            joined.append((offset, length))
    return path, joined


def read_xarray(dataset: xarray.Dataset, channel_set: ChannelSet, box: Box, count: int) -> None:
    """Loads the same box of pairs of frames through xarray and zarr-python, lazily indexed or through dask."""
    for first in _pairs(dataset.sizes["time"], count):
        for name, (start, stop) in find_extents(channel_set).items():
            begin, end = max(start, box.channels[0]), min(stop, box.channels[1])
            if begin < end:
                part = dataset[name].isel(time=slice(first, first + 2), latitude=slice(*box.lats))
                if part.ndim == 4:
                    part = part[:, begin - start : end - start]
                part.load()


def _pairs(times: int, count: int) -> Iterator[int]:
    """First times of `count` pairs, round and round; those in flight have no frame in common, which is read once."""
    return itertools.islice(itertools.cycle(range(0, times - 1, 2)), count)


def drop_from_page_cache(folder: Path) -> None:
    """Asks the kernel to forget the files' pages, so that the next read is from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def disk_bytes() -> int:
    """Bytes that this process has had fetched from disks, by the kernel's own count."""
    return int(Path("/proc/self/io").read_text().split("\nread_bytes: ")[1].split()[0])


def open_sources(
    folder: Path, mesh: Mesh, device: jax.Device, box: Box, *, compressors: Sequence[str], ahead: int
) -> dict[str, Read]:
    """What is compared, by name: functions that read so many samples, a pair of frames in a device's box each."""
    sources: dict[str, Read] = {}
    for name in compressors:
        archive = open_archive(str(folder / f"archive-{name}"))
        channel_set = ChannelSet(archive.channels)
        reader = Reader(archive, channel_set, mesh, 1, spare=2 * (AHEAD + 2), devices=[device])
        sources[f"archive, {name}"] = functools.partial(read_archive, reader, ahead=ahead)
        sources[f"its bytes, {name}"] = Raw(archive, box).read
    for name, chunks in (("xarray", None), ("xarray, dask", {})):
        dataset = xarray.open_zarr(folder / "globe.zarr", chunks=chunks)
        sources[name] = functools.partial(read_xarray, dataset, channel_set, box)
    return sources
