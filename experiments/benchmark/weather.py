"""Made-up weather on disk, as an archive and as a Zarr store: for the benchmarks of reading and preparing."""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from experiments.synthetic import make_grid
from weathermixer.archive.archive import Archive, Statistics, open_archive
from weathermixer.fields.grid import Grid
from weathermixer.fields.ranges import plausible_range
from weathermixer.fields.variables import LEVELS_HPA, Channel
from weathermixer.prepare.writer import create_archive, publish, write_statistics

SURFACE = ("mean_sea_level_pressure", "surface_pressure", "10m_u_component_of_wind", "10m_v_component_of_wind")
UPPER = ("geopotential", "specific_humidity", "temperature", "u_component_of_wind", "v_component_of_wind")
FRAMES_MADE = 8  # the others are these again
FIRST_TIME = np.datetime64("2000-01-01", "ns")


def make_channels(count: int) -> tuple[Channel, ...]:
    """As many variables on all 13 levels as there is room for, behind surface variables: ERA5's 69, or any number."""
    levels = sorted(LEVELS_HPA)
    upper = UPPER[: (count - 1) // len(levels)]
    names = itertools.chain(SURFACE, (f"field{number}" for number in itertools.count()))
    surface = itertools.islice(names, count - len(upper) * len(levels))
    return (*map(Channel, surface), *itertools.starmap(Channel, itertools.product(upper, levels)))


def make_frames(times: int, channels: int, grid: tuple[int, int]) -> Iterator[np.ndarray]:
    """Standardized frames [channel, lat, lon] float32: large waves and fine noise, so that zstd finds about a third."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(grid, np.float32)
    waves = [_smooth(rng, *grid, size) / (n + 1) for n, size in enumerate((6, 24, 96))]
    for time in np.arange(times) % FRAMES_MADE:
        frame = np.empty((channels, *grid), np.float32)
        for channel in range(channels):
            shift = 7 * time + 13 * channel
            wave = sum(np.roll(wave, shift * (2 * n + 1), axis=1) for n, wave in enumerate(waves))
            frame[channel] = wave + 0.003 * np.roll(noise, (shift, 3 * shift), axis=(0, 1))
        yield frame


def _smooth(rng: np.random.Generator, lat: int, lon: int, size: int) -> np.ndarray:
    """Random values at size x 2 size points, interpolated to the grid."""
    coarse = xr.DataArray(rng.standard_normal((size, 2 * size)), dims=("lat", "lon"))
    axes = {"lat": np.linspace(0, size - 1, lat), "lon": np.linspace(0, 2 * size - 1, lon)}
    return coarse.assign_coords(lat=range(size), lon=range(2 * size)).interp(axes).values.astype(np.float32)


def make_dataset(frame: np.ndarray, channels: Sequence[Channel], grid: Grid, time: np.datetime64) -> xr.Dataset:
    """A frame's variables at one time; all that have levels have the same ones."""
    dataset = xr.Dataset(coords={"time": [time], "latitude": grid.latitude, "longitude": grid.longitude})
    dataset.time.encoding["units"] = "hours since 1970-01-01"
    for name, (first, last) in find_extents(channels).items():
        upper = channels[first].level_hpa is not None
        if upper:
            dataset.coords["level"] = [channel.level_hpa for channel in channels[first:last]]
        dims = ("time", *["level"] * upper, "latitude", "longitude")
        dataset[name] = (dims, frame[None, first:last] if upper else frame[[first]], {"units": channels[first].units})
    return dataset


def find_extents(channels: Sequence[Channel]) -> dict[str, tuple[int, int]]:
    """First and last + 1 channel of each variable."""
    extents: dict[str, tuple[int, int]] = {}
    for index, channel in enumerate(channels):
        extents[channel.variable] = (extents.get(channel.variable, (index, 0))[0], index + 1)
    return extents


def write_zarr(path: Path, frames: Iterable[np.ndarray], channels: Sequence[Channel], compressor: Any) -> None:
    """A Zarr store, version 2, of plausible values: a chunk is one time of a variable, all its levels and the globe."""
    low, high = np.transpose([plausible_range(c.variable, c.level_hpa) for c in channels])[:, :, None, None]
    for number, frame in enumerate(frames):
        fields = ((low + high) / 2 + (high - low) / 40 * frame).astype(np.float32)
        time = FIRST_TIME + number * np.timedelta64(6, "h")
        dataset = make_dataset(fields, channels, make_grid(*frame.shape[1:]), time)
        encoding = {name: {"chunks": array.shape, "compressors": compressor} for name, array in dataset.items()}
        first = dict(mode="w", zarr_format=2, consolidated=True, encoding=encoding)
        dataset.to_zarr(path, **(dict(append_dim="time") if number else first))


def write_archive(
    path: Path, frames: Sequence[np.ndarray], channels: Sequence[Channel], *, mesh: tuple[int, int], compressor: str
) -> Archive:
    """An archive of these frames, made for a mesh of up to (domain, tensor)."""
    one = np.ones(len(channels))
    store = create_archive(
        path,
        times=FIRST_TIME + np.arange(len(frames)) * np.timedelta64(6, "h"),
        grid=make_grid(*frames[0].shape[1:]),
        channels=channels,
        static={},
        scale=one,
        offset=0 * one,
        domain=mesh[0],
        tensor=mesh[1],
        times_per_shard=1,
        attributes={"step_hours": 6, "source": "made up"},
        compressor=compressor,
    )
    for time, frame in enumerate(frames):
        store[time].write(frame.astype(np.float16)).result()
    write_statistics(path, Statistics(0 * one, one, one, -one, one, np.zeros(len(channels), np.int64)))
    publish(path)
    return open_archive(path)


def drop_from_page_cache(folder: Path) -> None:
    """Asks the kernel to forget the files' pages, so that the next read is from the disk."""
    for path in filter(Path.is_file, folder.rglob("*")):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
