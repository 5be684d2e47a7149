"""One variable over time, as it lies in the pieces of a source."""

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from weathermixer.prepare.names import conversion, find_variable
from weathermixer.prepare.orientation import take

RETRIES = 4  # of a remote read that failed, after 1, 2, 4 and 8 seconds


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """One variable over time: entry t is entry `position[t]` of `pieces[piece[t]]`, times `factor` plus `shift`."""

    pieces: tuple[xr.DataArray, ...]
    piece: Int[np.ndarray, " time"]
    position: Int[np.ndarray, " time"]
    factor: float
    shift: float


def find_series(pieces: Sequence[xr.Dataset], variable: str, *, source: str) -> tuple[np.ndarray, Series]:
    """All times of a variable, ascending, with where each of them lies.

    Raises ValueError for more dimensions than time, level, latitude and longitude, and for times that lie there twice.
    """
    arrays, times = [], []
    for piece in pieces:
        found = find_variable(piece, variable)
        if found is None:
            continue
        array = piece[found]
        other = [dim for dim in array.dims if dim not in ("time", "level", "latitude", "longitude")]
        if other:
            sizes = {dim: array.sizes[dim] for dim in other}
            raise ValueError(f"{variable} in {source} has more dimensions, {sizes}: select one entry, {other[0]}=VALUE")
        if "time" not in array.dims:
            raise ValueError(f"{variable} in {source} has no time dimension: it has {array.dims}")
        if not np.issubdtype(array["time"].dtype, np.datetime64):
            raise ValueError(f"times of {source} are {array['time'].dtype}, not dates of the common calendar")
        arrays.append(array)
        times.append(array["time"].values.astype("datetime64[ns]"))
    everything = np.concatenate(times)
    order = np.argsort(everything, kind="stable")
    twice = np.flatnonzero(np.diff(everything[order]) == np.timedelta64(0, "ns"))
    if len(twice):
        raise ValueError(f"{source} holds {variable} twice for {everything[order][twice[0]]}")
    piece = np.concatenate([np.full(len(t), index) for index, t in enumerate(times)])[order]
    position = np.concatenate([np.arange(len(t)) for t in times])[order]
    return everything[order], Series(tuple(arrays), piece, position, *conversion(arrays[0], variable))


def take_times(times: np.ndarray, series: Series, wanted: np.ndarray) -> Series:
    """The part of a series at some of its times."""
    index = np.searchsorted(times, wanted)
    return dataclasses.replace(series, piece=series.piece[index], position=series.position[index])


def read_piece(
    array: xr.DataArray, position: np.ndarray, levels: Sequence[int | None], *, remote: bool
) -> Float[np.ndarray, "time channel lat lon"]:
    """Reads times and levels of an array, in the order asked for, rows and columns as they lie there.

    Where the array is remote, a read that fails is tried again, with a pause that doubles.
    """
    array = array.isel(time=_as_slice(position))
    order = None
    if "level" in array.dims:
        wanted = [int(np.flatnonzero(np.isclose(array["level"].values, level))[0]) for level in levels]
        unique = np.unique(wanted)
        array, order = array.isel(level=_as_slice(unique)), np.searchsorted(unique, wanted)
    values = _load(array, remote=remote)
    axes = [array.dims.index(name) for name in ("time", "level", "latitude", "longitude") if name in array.dims]
    values = values.transpose(axes)
    return values[:, None] if order is None else take(values, order, axis=1)


def _load(array: xr.DataArray, *, remote: bool) -> np.ndarray:
    for attempt in range(RETRIES if remote else 0):
        try:
            return array.to_numpy()
        except OSError:  # time-outs and broken connections among them
            time.sleep(2**attempt)
    return array.to_numpy()


def _as_slice(index: np.ndarray) -> slice | np.ndarray:
    """A slice where an ascending index has equal steps: lazy stores read slices quickest."""
    steps = np.diff(index)
    if len(index) == 1 or (steps[0] > 0 and np.all(steps == steps[0])):
        step = int(steps[0]) if len(steps) else 1
        return slice(int(index[0]), int(index[-1]) + 1, step)
    return index
