"""Forecasts in the form of WeatherBench 2: computed lead after lead, written frame by frame to Zarr or netCDF.

A file has dimensions time (the start), prediction_timedelta, level, latitude, longitude, and SI units; xarray opens it
and WeatherBench 2's programs score it. It appears under its name when it is complete.
"""

import os
import pathlib
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr
import zarr
from jax.sharding import Mesh, PartitionSpec, reshard
from jaxtyping import Array, Float, Int
from tqdm import tqdm

import weathermixer
from weathermixer.archive.archive import Archive
from weathermixer.archive.loader import read_frames
from weathermixer.archive.standardization import Standardization, standardize, to_physical
from weathermixer.fields.grid import Grid
from weathermixer.fields.variables import VARIABLES, Channel, ChannelSet
from weathermixer.forecasting.rollout import Apply, batches, rollout
from weathermixer.parallel.mesh import check_divides, use_mesh

# (positions of the starts, position of the lead, physical fields of the dynamic channels)
Frames = tuple[Int[np.ndarray, " start"], int, Float[np.ndarray, "start channel lat lon"]]


def make_forecast(
    apply: Apply,
    params: Any,
    archive: Archive,
    channel_set: ChannelSet,
    standardization: Standardization,
    mesh: Mesh,
    *,
    starts: Int[np.ndarray, " start"],
    lead_steps: Sequence[int],
    batch_size: int,
    mode: str = "autoregressive",
    history: int = 1,
    progress: bool = False,
) -> Iterator[Frames]:
    """Yields the forecasts from the archive's times `starts`, a batch of starts and a lead at a time, in SI units.

    On several processes each gets every frame. Raises ValueError for no starts and for a batch that does not divide.
    """
    if not len(starts):
        raise ValueError("no start to forecast from")
    check_divides(mesh, batch_size=("batch", batch_size))
    bar = tqdm(total=len(starts) * len(lead_steps), desc="forecast", unit="frame", disable=not progress, leave=False)
    with use_mesh(mesh), bar:
        for chosen, real in batches(len(starts), batch_size):
            indices = [starts[chosen] - before for before in range(history)]
            x, *previous = (standardize(read_frames(archive, channel_set, mesh, i), standardization) for i in indices)
            options = {"static": standardization.static, "lead_steps": lead_steps, "mode": mode}
            if previous:
                options["previous"] = previous[0]
            forecasts = rollout(apply, params, x, **options)
            for lead, (_, prediction) in enumerate(forecasts):
                fields = gather_physical(prediction, standardization)
                yield chosen[real], lead, fields[real, : len(channel_set.dynamic)]
                bar.update(int(real.sum()))


def gather_physical(
    fields: Float[Array, "b n lat lon"], standardization: Standardization
) -> Float[np.ndarray, "b n lat lon"]:
    """Standardized fields in SI units, whole, in the memory of every process."""
    return np.asarray(_replicate_physical(fields, standardization))


@jax.jit
def _replicate_physical(fields: Array, standardization: Standardization) -> Array:
    return reshard(to_physical(fields, standardization), PartitionSpec())


def write_forecast(
    path: str | os.PathLike,
    frames: Iterable[Frames],
    *,
    times: np.ndarray,
    lead_hours: Sequence[int],
    grid: Grid,
    channels: Sequence[Channel],
    attributes: Mapping[str, str],
) -> None:
    """Writes forecasts as they come to `path`, a .zarr store or a .nc file; an old one is replaced when all is done.

    The first process writes, the others just let their frames pass. Raises ValueError for another ending, or a path
    that is not on a file system.
    """
    path = check_output(path)
    partial = path.with_name(path.name + ".partial")
    writing = jax.process_index() == 0
    arrays = _create(partial, times, lead_hours, grid, channels, attributes) if writing else {}
    for starts, lead, fields in frames:
        for variable, array in arrays.items():
            positions = [i for i, channel in enumerate(channels) if channel.variable == variable]
            values = fields[:, positions]
            if array.ndim == 4:
                array[starts[0] : starts[-1] + 1, lead] = values[:, 0]
            else:
                order = np.argsort([channels[i].level_hpa for i in positions])
                array[starts[0] : starts[-1] + 1, lead] = values[:, order]
    if writing:
        _publish(partial, path)


def check_output(path: str | os.PathLike) -> pathlib.Path:
    """The path of a forecast file; ValueError where its ending says neither Zarr nor netCDF, or it is not local."""
    if "://" in os.fspath(path):
        raise ValueError(f"output={os.fspath(path)!r}: forecasts are written to a file system; copy them on from there")
    path = pathlib.Path(path)
    if path.suffix not in (".zarr", ".nc"):
        raise ValueError(f"output={str(path)!r} must end with .zarr or .nc")
    return path


def coordinates(times: np.ndarray, lead_hours: Sequence[int], grid: Grid, channels: Sequence[Channel]) -> xr.Dataset:
    """The coordinates of a forecast file, with CF attributes; levels ascend in hPa, as in WeatherBench 2."""
    hours = {"dtype": "int64", "units": "hours"}
    since = {"dtype": "int64", "units": "hours since 1970-01-01", "calendar": "proleptic_gregorian"}
    start = {
        "standard_name": "forecast_reference_time",
        "long_name": "time of the analysis that the forecast starts from",
    }
    coords = {
        "time": ("time", np.asarray(times, "datetime64[ns]"), start, since),
        "prediction_timedelta": (
            "prediction_timedelta",
            np.asarray(lead_hours, "timedelta64[h]").astype("timedelta64[ns]"),
            {"standard_name": "forecast_period", "long_name": "lead time"},
            hours,
        ),
        "latitude": ("latitude", grid.latitude, {"units": "degrees_north", "standard_name": "latitude"}),
        "longitude": ("longitude", grid.longitude, {"units": "degrees_east", "standard_name": "longitude"}),
    }
    levels = sorted({channel.level_hpa for channel in channels if channel.level_hpa is not None})
    if levels:
        attributes = {"units": "hPa", "standard_name": "air_pressure", "positive": "down", "axis": "Z"}
        coords["level"] = ("level", np.array(levels, np.int64), attributes)
    return xr.Dataset(coords=coords)


def _create(partial, times, lead_hours, grid, channels, attributes) -> dict[str, zarr.Array]:
    if partial.exists():
        shutil.rmtree(partial)
    partial.parent.mkdir(parents=True, exist_ok=True)
    dataset = coordinates(times, lead_hours, grid, channels)
    about = {"Conventions": "CF-1.10", "source": f"weathermixer {weathermixer.__version__}", **attributes}
    dataset.assign_attrs(about).to_zarr(partial, mode="w", zarr_format=3, consolidated=False)
    group = zarr.open_group(partial, mode="r+")
    arrays = {}
    for variable in dict.fromkeys(channel.variable for channel in channels):
        levels = [channel.level_hpa for channel in channels if channel.variable == variable]
        upper = levels != [None]
        if upper and len(levels) != dataset.sizes["level"]:
            raise ValueError(f"{variable} is on levels {levels}, others on {dataset.level.values}: write them apart")
        dims = ("time", "prediction_timedelta", *(["level"] if upper else []), "latitude", "longitude")
        shape = tuple(dataset.sizes[dim] for dim in dims)
        arrays[variable] = group.create_array(
            variable,
            shape=shape,
            chunks=(1, 1, *shape[2:]),
            dtype="float32",
            fill_value=np.nan,
            dimension_names=dims,
            attributes=_attributes(next(channel for channel in channels if channel.variable == variable)),
        )
    return arrays


def _attributes(channel: Channel) -> dict[str, str]:
    known = VARIABLES.get(channel.variable)
    attributes = {"long_name": channel.variable.replace("_", " "), "units": channel.units}
    return attributes | ({"standard_name": known.standard_name} if known else {})


def _publish(partial: pathlib.Path, path: pathlib.Path) -> None:
    if path.suffix == ".nc":
        file = path.with_name(path.name + ".partial.nc")
        with xr.open_zarr(partial, consolidated=False, chunks=None) as dataset:
            encoding = {
                name: {"zlib": True, "complevel": 1, "_FillValue": np.float32("nan")} for name in dataset.data_vars
            }
            dataset.drop_encoding().to_netcdf(file, encoding=encoding)
        shutil.rmtree(partial)
        file.replace(path)
        return
    with warnings.catch_warnings():
        # a convention that the v3 specification does not name yet; xarray looks for it all the same
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(partial)
    if path.exists():
        shutil.rmtree(path)
    partial.rename(path)
