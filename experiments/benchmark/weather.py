"""Made-up weather in a Zarr store: for the benchmarks of reading, preparing and forecasting."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
import xarray as xr

from experiments.synthetic import make_grid
from weathermixer.fields.grid import Grid
from weathermixer.fields.units import plausible_range
from weathermixer.fields.variables import ERA5, Channel, group_by_variable

MORE = ("surface_pressure", "sea_surface_temperature", "sea_ice_cover")
CHANNELS = (*ERA5.dynamic, *map(Channel, MORE))  # as many as the reference model has with its static fields
FRAMES_MADE = 8  # the others are these again
FIRST_TIME = np.datetime64("2000-01-01", "ns")


def make_frames(times: int, channels: int, grid: tuple[int, int]) -> Iterator[np.ndarray]:
    """Standardized frames [channel, lat, lon] float32: large waves and fine noise, so that zstd finds about a third."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(grid, np.float32)
    coarse = [rng.standard_normal((size, 2 * size), np.float32) / (n + 1) for n, size in enumerate((6, 24, 96))]
    waves = [scipy.ndimage.zoom(wave, np.divide(grid, wave.shape), order=1) for wave in coarse]
    for time in np.arange(times) % FRAMES_MADE:
        frame = np.empty((channels, *grid), np.float32)
        for channel in range(channels):
            shift = 7 * time + 13 * channel
            wave = sum(np.roll(wave, shift * (2 * n + 1), axis=1) for n, wave in enumerate(waves))
            frame[channel] = wave + 0.003 * np.roll(noise, (shift, 3 * shift), axis=(0, 1))
        yield frame


def make_dataset(frame: np.ndarray, channels: Sequence[Channel], grid: Grid, time: np.datetime64) -> xr.Dataset:
    """A frame's variables at one time; all that have levels have the same ones."""
    dataset = xr.Dataset(coords={"time": [time], "latitude": grid.latitude, "longitude": grid.longitude})
    dataset.time.encoding["units"] = "hours since 1970-01-01"
    for name, indices in group_by_variable(channels).items():
        fields, dims = frame[indices], ()
        if channels[indices[0]].level_hpa is not None:
            dataset.coords["level"] = [channels[index].level_hpa for index in indices]
            fields, dims = fields[None], ("level",)
        dataset[name] = (("time", *dims, "latitude", "longitude"), fields, {"units": channels[indices[0]].units})
    return dataset


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


def drop_from_page_cache(folder: Path) -> None:
    """Asks the kernel to forget the files' pages, so that the next read is from the disk."""
    for path in filter(Path.is_file, folder.rglob("*")):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
