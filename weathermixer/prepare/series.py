"""One variable over time, as it lies in the pieces of a source."""

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from weathermixer.prepare.names import conversion, find_variable
from weathermixer.prepare.orientation import take

HOUR = np.timedelta64(1, "h")
REPEATS_READ = 64  # of the times that lie in a source twice
RETRIES = 4  # of a remote read that failed, after 1, 2, 4 and 8 seconds


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """One variable over time: entry t is entry `position[t]` of `pieces[piece[t]]`, times `factor` plus `shift`."""

    pieces: tuple[xr.DataArray, ...]
    names: tuple[str, ...]
    piece: Int[np.ndarray, " time"]
    position: Int[np.ndarray, " time"]
    factor: float
    shift: float


def find_series(
    pieces: Sequence[xr.Dataset], variable: str, *, source: str
) -> tuple[np.ndarray, Series, np.ndarray, Series]:
    """All times of a variable, ascending, with where each lies first; and those that are there again, with where.

    Raises ValueError for more dimensions than time, level, latitude and longitude.
    """
    arrays, names, times = [], [], []
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
        arrays.append(array)
        names.append(str(piece.encoding.get("source", source)))
        times.append(array["time"].values)
    everything = np.concatenate(times)
    order = np.argsort(everything, kind="stable")
    piece = np.concatenate([np.full(len(t), index) for index, t in enumerate(times)])[order]
    position = np.concatenate([np.arange(len(t)) for t in times])[order]
    everything = everything[order]
    whole = Series(tuple(arrays), tuple(names), piece, position, *conversion(arrays[0], variable))
    first = np.diff(everything, prepend=everything[:1] - np.timedelta64(1, "ns")) > np.timedelta64(0, "ns")
    return (
        everything[first],
        dataclasses.replace(whole, piece=piece[first], position=position[first]),
        everything[~first],
        dataclasses.replace(whole, piece=piece[~first], position=position[~first]),
    )


def compare_repeats(
    variable: str,
    times: np.ndarray,
    series: Series,
    again_times: np.ndarray,
    again: Series,
    levels: Sequence[int | None],
) -> str | None:
    """Reads what lies in a source twice for `times`: a line of what was taken once, None where there is nothing.

    Of many repeated times REPEATS_READ are compared, evenly spread. Raises ValueError naming time and files where
    values differ by more than another packing makes them differ.
    """
    wanted = np.flatnonzero(np.isin(again_times, times))
    if not len(wanted):
        return None
    compared = np.unique(wanted[np.linspace(0, len(wanted) - 1, REPEATS_READ).round().astype(int)])
    for other in compared:
        one = np.searchsorted(times, again_times[other])
        places = (series.piece[one], series.position[one]), (again.piece[other], again.position[other])
        a, b = (
            read_piece(series.pieces[n], np.array([at]), levels, remote="://" in series.names[n]) for n, at in places
        )
        tolerance = 3e-5 * np.ptp(a[np.isfinite(a)]) if np.isfinite(a).any() else 0
        if not np.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True):
            what = f"{variable} at {again_times[other]:.16} lies twice in the source, with different values"
            raise ValueError(f"{what}: {_tell_apart(series, places[0][0], places[1][0], again_times[other])}")
    files = sorted({series.names[n] for n in again.piece[wanted]})
    some = files[0] + f" and {len(files) - 1} more" * (len(files) > 1)
    what = f"{len(wanted)} times of {variable} are there again with the same values ({len(compared)} compared)"
    return f"{what}, taken once: {some}"


def _tell_apart(series: Series, a: int, b: int, time: np.datetime64) -> str:
    """Where two pieces lie, by what they differ, and how to choose one."""
    where = f"in {series.names[a]} and {series.names[b]}" if a != b else f"in {series.names[a]}"
    for name, coordinate in series.pieces[a].coords.items():
        other = series.pieces[b].coords.get(name)
        if coordinate.ndim or other is None or other.ndim or coordinate.values == other.values:
            continue
        values = [f"{c.values / HOUR:g}h" if c.dtype.kind == "m" else str(c.values) for c in (coordinate, other)]
        return f"{where}, of {name} {' and '.join(values)}: choose one (--select {name}={values[0]})"
    return f"{where}: leave one out, or the time (--exclude {time:.16})"


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
