"""One variable over time, as it lies in the parts of a source, and how it is read."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped

from weathermixer.archive.archive import HOUR
from weathermixer.archive.sampling import spread
from weathermixer.archive.storage import as_slice
from weathermixer.fields.variables import Channel
from weathermixer.sources.coordinates import Orientation, take
from weathermixer.sources.parts import Note, Part

REPEATS_READ = 64  # of the times that lie in a source twice
RETRIES = 4  # of a remote read that failed, after 1, 2, 4 and 8 seconds
# of netCDF, where a file declares none, and the letter of the type in NCO
DEFAULT_FILLS = {"int8": (-127, "b"), "int16": (-32767, "s"), "int32": (-2147483647, "i")}
# where a value of a time lies: at which of a part's times, and in which part
ENTRY = np.dtype([("time", "datetime64[ns]"), ("part", np.int64), ("position", np.int64)])


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """Some channels of one variable over time, each time the sum of `window` entries of its parts, often one."""

    parts: tuple[Part, ...]
    channels: tuple[int, ...]  # places among those of the variable
    levels_hpa: tuple[int, ...]  # of the channels; none at the surface
    entries: Shaped[np.ndarray, "time window"]  # of type ENTRY

    @property
    def window(self) -> int:
        """How many entries a time is the sum of."""
        return self.entries.shape[1]

    @property
    def times(self) -> np.ndarray:
        """The times [time], datetime64[ns], each that of its last entry."""
        return self.entries["time"][:, -1]

    def sum_over(self, hours: int) -> "Series":
        """The sums over the last so many hours, at each time that has all entries for one.

        Raises ValueError where the entries are not several times as frequent.
        """
        steps, counts = np.unique(np.diff(self.times), return_counts=True)
        step = steps[counts.argmax()] if len(steps) else hours * HOUR
        window, rest = divmod(hours * HOUR, step)
        if rest or window < 2:
            part = self.parts[0]
            raise ValueError(
                f"{part.file} has {part.given} every {step / HOUR:g} h, of which {part.variable} is no sum: if it is "
                f"the amount of {hours} h, say --rename={part.given}={part.variable}"
            )
        last = np.arange(window - 1, len(self.times))
        last = last[self.times[last] - self.times[last - (window - 1)] == (window - 1) * step]
        return dataclasses.replace(self, entries=self.entries[last[:, None] + np.arange(1 - window, 1), 0])

    def narrow(self, index: Int[np.ndarray, " time"]) -> "Series":
        """The series at some of its times, with no more of its parts than that takes: to be sent about."""
        entries, parts = self.entries[index].copy(), []
        for number, old in enumerate(np.unique(entries["part"])):
            array, here = self.parts[old].array, entries["part"] == old
            if "time" in array.dims:
                first, last = entries["position"][here].min(), entries["position"][here].max()
                array = array.isel(time=slice(first, last + 1))
                entries["position"][here] -= first
            entries["part"][here] = number  # which is no larger than any that is still to come
            parts.append(dataclasses.replace(self.parts[old], array=array, times=None))
        return dataclasses.replace(self, parts=tuple(parts), entries=entries)

    def read(self, index: Int[np.ndarray, " time"], *, gaps: bool = False) -> Float[np.ndarray, "time channel lat lon"]:
        """Reads some times as float32, oriented and in the units wanted; `gaps` as Source's."""
        entries = self.entries[index].ravel()
        runs = np.split(entries, np.flatnonzero(np.diff(entries["part"])) + 1)
        blocks = [read_part(self.parts[run["part"][0]], run["position"], self.levels_hpa, gaps=gaps) for run in runs]
        values = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return values if self.window == 1 else values.reshape(-1, self.window, *values.shape[1:]).sum(axis=1)


def read_part(
    part: Part, position: np.ndarray, levels: Sequence[int] = (), *, gaps: bool = False
) -> Float[np.ndarray, "time channel lat lon"]:
    """Reads times and levels of a part that is fitted to a grid and units, in the order asked for; `gaps` as Source's.

    Where the part is remote, a read that fails is tried again, with a pause that doubles.
    """
    array, order = part.array, None
    if "time" in array.dims:
        array = array.isel(time=as_slice(position))
    if "level" in array.dims:
        wanted = [part.levels_hpa.index(level) for level in levels]
        unique = np.unique(wanted)
        if "chunksizes" in part.array.encoding:  # of netCDF's chunks each range of levels is decoded anew
            unique = np.arange(unique[0], unique[-1] + 1)
        array, order = array.isel(level=as_slice(unique)), np.searchsorted(unique, wanted)
    for attempt in range(RETRIES if "://" in part.file else 0):
        try:
            values = array.to_numpy()
            break
        except OSError:  # time-outs and broken connections among them
            time.sleep(2**attempt)
    else:
        values = array.to_numpy()
    values = _check_fill(part, values, gaps)
    axes = [array.dims.index(name) for name in ("time", "level", "latitude", "longitude") if name in array.dims]
    values = values.transpose(axes)
    if "time" not in array.dims:
        values = values[None]
    values = values[:, None] if order is None else take(values, order, axis=1)
    values, (factor, shift) = part.orientation.apply(values), part.scaling
    return values if part.scaling == (1.0, 0.0) else values * np.float32(factor) + np.float32(shift)


def _check_fill(part: Part, values: np.ndarray, gaps: bool) -> np.ndarray:
    """The values, those that are packed as netCDF's default fill missing where these are `gaps`.

    Else raises ValueError for them where the file declares no fill. A value that is so by chance is alone, and zero is
    the end of the range of many variables.
    """
    packing = part.array.encoding
    fill, kind = DEFAULT_FILLS.get(str(packing.get("dtype")), (None, ""))
    if fill is None or "scale_factor" not in packing or {"_FillValue", "missing_value"} & packing.keys():
        return values
    scale, offset = packing["scale_factor"], packing.get("add_offset", 0.0)
    mark = fill * scale + offset
    found = np.abs(values - mark) < abs(scale) / 4
    count = np.count_nonzero(found)
    if abs(mark) <= abs(scale) / 2 or not count or (count == 1 and not gaps):
        return values
    if gaps:
        return np.where(found, np.nan, values)
    # not _FillValue, which cannot be added to a netCDF 4 file
    raise ValueError(
        f"{count} of {values.size} values of {part.given} in {part.file} are {mark:g}, packed as {fill}, netCDF's mark "
        "of missing values, which the file does not declare: prepare takes them as missing with --keep-faults; or "
        f"declare what is missing, ncatted -a missing_value,{part.given},o,{kind},{fill} {part.file}, another value "
        "where these are no gaps"
    )


def find_series(
    parts: Sequence[Part], channels: Sequence[Channel], orient: Callable[[Part], Orientation]
) -> list[tuple[Series, Series]]:
    """Where a variable's channels lie, first and again, ascending in time: a pair for all levels of the same parts.

    Raises ValueError for units that cannot be converted and for parts on another grid.
    """
    holders: dict[tuple[int, ...], list[int]] = {}
    for place, channel in enumerate(channels):
        found = [n for n, part in enumerate(parts) if channel.level_hpa is None or channel.level_hpa in part.levels_hpa]
        holders.setdefault(tuple(found), []).append(place)
    pairs = []
    for numbers, places in holders.items():
        some = tuple(parts[number].fit(orient(parts[number]), channels[0].units) for number in numbers)
        counts = [len(part.times) for part in some]
        entries = np.empty(sum(counts), ENTRY)
        entries["time"] = np.concatenate([part.times for part in some])
        entries["part"] = np.repeat(np.arange(len(some)), counts)
        entries["position"] = np.concatenate([np.arange(count) for count in counts])
        entries = entries[np.argsort(entries["time"], kind="stable")]
        first = np.isin(np.arange(len(entries)), np.unique(entries["time"], return_index=True)[1])
        levels = tuple(channels[place].level_hpa for place in places if channels[place].level_hpa is not None)
        one, again = (Series(some, tuple(places), levels, entries[chosen, None]) for chosen in (first, ~first))
        pairs.append((one.sum_over(some[0].sum_hours) if some[0].sum_hours else one, again))
    return pairs


def compare_repeats(variable: str, series: Series, again: Series) -> list[Note]:
    """Reads what lies in a source again at a series' times: notes of what was taken once.

    Of many repeated times REPEATS_READ are compared, evenly spread. Raises ValueError naming time and files where
    values differ by more than another packing makes them differ.
    """
    series = dataclasses.replace(series, entries=np.unique(series.entries)[:, None])  # not summed
    wanted = np.flatnonzero(np.isin(again.times, series.times))
    compared = spread(wanted, REPEATS_READ)
    for other in compared:
        one = int(np.searchsorted(series.times, again.times[other]))
        a, b = series.read(np.array([one]), gaps=True), again.read(np.array([other]), gaps=True)
        tolerance = 3e-5 * np.ptp(a[np.isfinite(a)]) if np.isfinite(a).any() else 0
        if not np.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True):
            what = f"{variable} at {again.times[other]:.16} lies twice in the source, with different values"
            holders = (some.parts[some.entries["part"][n, 0]] for some, n in ((series, one), (again, other)))
            raise ValueError(f"{what}: {_tell_apart(*holders, again.times[other])}")
    what = f"{len(wanted)} times of {variable} are there again with the same values ({len(compared)} compared)"
    files = sorted({again.parts[n].file for n in again.entries["part"][wanted, 0]})
    return [Note(f"{what}, taken once", file) for file in files]


def _tell_apart(a: Part, b: Part, time: np.datetime64) -> str:
    """Where two parts lie, by what they differ, and how to choose one."""
    where = f"in {' and '.join(dict.fromkeys((a.file, b.file)))}"
    for name, coordinate in a.array.coords.items():
        other = b.array.coords.get(name)
        if other is None or coordinate.values == other.values:
            continue
        values = [f"{c.values / HOUR:g}h" if c.dtype.kind == "m" else str(c.values) for c in (coordinate, other)]
        return f"{where}, of {name} {' and '.join(values)}: choose one (--select={name}={values[0]})"
    return f"{where}: leave one out, or the time (--exclude={time:.13})"


def check_levels(variable: str, series: Sequence[Series], times: np.ndarray) -> None:
    """Raises ValueError where some levels of a variable are not there at times that others are, naming one's file."""
    for one in series:
        absent = np.setdiff1d(times, one.times)
        if not len(absent):
            continue
        other = next(other for other in series if absent[0] in other.times)
        part = other.parts[other.entries["part"][np.searchsorted(other.times, absent[0]), -1]]
        levels = ", ".join(f"{level} hPa" for level in one.levels_hpa)
        raise ValueError(
            f"{variable} on {levels} is absent at {len(absent)} of {len(times)} times, first {absent[0]:.16}, where "
            f"{part.file} has {', '.join(f'{level:g}' for level in part.levels_hpa)} hPa: leave out levels, --levels, "
            "or times, --period"
        )
