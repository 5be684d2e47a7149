"""Forecasts on disk: frames are written while the next ones compute, by all processes, each what its devices hold.

A Zarr v3 store in WeatherBench 2's form. A chunk is one field of one start and lead, or the band of it that a device
holds, and is not compressed: TensorStore's threads write it as it comes from the device. The store appears under its
name when it is complete; starts that are finished are marked, so that forecasts which were stopped go on after them.
"""

import collections
import hashlib
import json
import os
import pathlib
import shutil
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr
import zarr
from jaxtyping import Int

from weathermixer.archive import storage
from weathermixer.fields.variables import Channel
from weathermixer.forecasting.forecasts import Forecast, find_place
from weathermixer.forecasting.grib import write_grib
from weathermixer.parallel.distributed import wait_for_all

FRAMES_IN_FLIGHT = 2  # on their way from the devices, and as many on their way to the disk
SUFFIXES = (".zarr", ".nc", ".grib2")


def check_output(path: str | os.PathLike) -> pathlib.Path:
    """The path of a forecast file; ValueError where its ending is none of SUFFIXES, or it is not local."""
    if "://" in os.fspath(path):
        raise ValueError(f"output={os.fspath(path)!r}: forecasts are written to a file system; copy them on from there")
    path = pathlib.Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"output={str(path)!r} must end with one of {', '.join(SUFFIXES)}")
    return path


class ForecastWriter:
    """Writes the forecasts that `description` (of describe_forecasts) describes to a store, or a file at the end.

    `unfinished` are the positions of the starts, of an ensemble of (start, member), that are not there yet, from an
    earlier writer with the same description and the same `maker`, which names what computes them. An older file is
    replaced when all is done.
    """

    def __init__(
        self, path: str | os.PathLike, description: xr.Dataset, channels: Sequence[Channel], *, rows: int, maker: Any
    ):
        """`rows` are the latitudes that one device holds. Raises ValueError for an output that cannot be written."""
        self._path = check_output(path)
        self._partial = self._path.with_name(self._path.name + ".partial")
        self._progress = self._path.with_name(self._path.name + ".partial.json")  # which starts are finished in it
        self._description, self._channels = description, channels
        identity = [description.coords.to_dataset().to_dict(), description.attrs]
        identity += [[channel.name for channel in channels], rows, maker]
        self._identity = hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()
        self._finished: list[int] = []
        self._begin()
        wait_for_all("forecast store is there")
        self._arrays = {
            name: storage.create_array(self._partial / name, _metadata(array, rows=rows), sync=False)
            for name, array in description.data_vars.items()
        }

    @property
    def unfinished(self) -> Int[np.ndarray, " start"]:
        sizes = self._description.sizes
        return np.setdiff1d(np.arange(sizes["time"] * sizes.get("number", 1)), self._finished)

    def write(self, forecasts: Iterable[Forecast], positions: Int[np.ndarray, " start"]) -> None:
        """Writes forecasts as they come; `positions` are those of the starts that they are made from."""
        coming: collections.deque = collections.deque()
        going: collections.deque = collections.deque()
        for starts, lead, fields in forecasts:
            parts = fields.addressable_shards
            for part in parts:
                part.data.copy_to_host_async()
            coming.append((positions[starts], lead, parts))
            if len(coming) > FRAMES_IN_FLIGHT:
                going.append(self._start(*coming.popleft()))
            if len(going) > FRAMES_IN_FLIGHT:
                self._finish(*going.popleft())
        for frame in coming:
            going.append(self._start(*frame))
        for frame in going:
            self._finish(*frame)

    def publish(self) -> xr.Dataset:
        """Puts the file in its place, and opens it lazily; the forecasts of a GRIB file are returned in memory."""
        wait_for_all("forecasts are written")
        if self._path.suffix == ".grib2":
            with xr.open_zarr(self._partial, consolidated=False, chunks=None) as dataset:
                found = dataset.load()
        if jax.process_index() == 0:
            _publish(self._partial, self._path, list(self._description.data_vars))
            self._progress.unlink()
        wait_for_all("forecasts are published")
        if self._path.suffix == ".grib2":
            return found
        return xr.open_dataset(self._path) if self._path.suffix == ".nc" else xr.open_zarr(self._path, chunks=None)

    def _begin(self) -> None:
        """Finds which starts are finished in a partial store of the same forecasts; else makes one, without fields."""
        there = self._partial.exists() and self._progress.exists()
        found = json.loads(self._progress.read_text()) if there else {"identity": None}
        wait_for_all("forecast store was looked for")
        if found["identity"] == self._identity:
            self._finished = found["finished"]
        elif jax.process_index() == 0:
            if self._partial.exists():
                shutil.rmtree(self._partial)
            self._partial.parent.mkdir(parents=True, exist_ok=True)
            places = self._description.drop_vars(self._description.data_vars)
            places.to_zarr(self._partial, mode="w", zarr_format=3, consolidated=False)
            self._mark([])

    def _start(self, starts: np.ndarray, lead: int, parts: Sequence[Any]) -> tuple[np.ndarray, int, list]:
        """Hands a frame to the threads that write it, field by field."""
        futures = []
        for part in parts:
            rows, first, lats = (index.indices(2**62)[0] for index in part.index[:3])
            values = np.asarray(part.data)  # [row, channel, lat, lon] of this device
            band = slice(lats, lats + values.shape[2])
            for row, start in enumerate(starts[rows : rows + values.shape[0]]):
                for n, channel in enumerate(self._channels[first : first + values.shape[1]]):
                    index = (*find_place(self._description, channel, int(start), lead), band)
                    field = self._arrays[channel.variable][index]  # written from memory that nobody changes any more
                    futures.append(field.write(values[row, n], can_reference_source_data_indefinitely=True))
        return starts, lead, futures

    def _finish(self, starts: np.ndarray, lead: int, futures: Sequence[storage.WriteFutures]) -> None:
        """Waits until a frame is written, and marks its starts as finished where it is their last."""
        try:
            for future in futures:
                future.result()
        except Exception as error:
            raise ValueError(
                f"{self._partial} cannot be written: {error}\nfinished forecasts are kept: make room, or mend what is "
                "wrong, and the same call goes on"
            ) from None
        if lead == self._description.sizes["prediction_timedelta"] - 1:
            wait_for_all("forecasts of a batch are written")
            self._mark(starts.tolist())

    def _mark(self, starts: Sequence[int]) -> None:
        self._finished = [*self._finished, *starts]
        if jax.process_index() == 0:
            document = {"identity": self._identity, "finished": self._finished}
            storage.write_whole(self._progress, json.dumps(document))


def _metadata(array: xr.DataArray, *, rows: int) -> dict[str, Any]:
    chunk = [*[1] * (array.ndim - 2), rows, array.shape[-1]]
    about = {"fill_value": "NaN", "dimension_names": list(array.dims), "attributes": array.attrs}
    return storage.array_metadata(array.shape, chunk, "float32", [storage.BYTES], **about)


def _publish(partial: pathlib.Path, path: pathlib.Path, variables: list[str]) -> None:
    if path.suffix == ".zarr":
        with warnings.catch_warnings():
            # a convention that the v3 specification does not name yet; xarray looks for it all the same
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            zarr.consolidate_metadata(partial)
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
        return
    with xr.open_zarr(partial, consolidated=False, chunks=None) as dataset:
        if path.suffix == ".grib2":
            write_grib(dataset[variables], path)
        else:
            file = path.with_name(path.name + ".partial.nc")
            packing = {"zlib": True, "complevel": 1, "_FillValue": np.float32("nan")}
            dataset[variables].drop_encoding().to_netcdf(file, encoding=dict.fromkeys(variables, packing))
            file.replace(path)
    shutil.rmtree(partial)
