"""One variable over time, as it lies in the parts of a source."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from weathermixer.fields.variables import Channel
from weathermixer.sources.orientation import Orientation
from weathermixer.sources.parts import Part
from weathermixer.sources.reading import read_part

HOUR = np.timedelta64(1, "h")
REPEATS_READ = 64  # of the times that lie in a source twice


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """Some channels of one variable over time, each time the sum of `window` entries of its parts, often one.

    Entry [time, n], at stamps[time, n], is entry position[time, n] of parts[part[time, n]]. channels: their places
    among those of the variable; levels_hpa: theirs, none at the surface. conversions and orientations [parts] turn what
    is read into the units and the grid wanted.
    """

    parts: tuple[Part, ...]
    conversions: tuple[tuple[float, float], ...]
    orientations: tuple[Orientation, ...]
    channels: tuple[int, ...]
    levels_hpa: tuple[int, ...]
    stamps: np.ndarray
    part: Int[np.ndarray, "time window"]
    position: Int[np.ndarray, "time window"]

    @property
    def window(self) -> int:
        """How many entries a time is the sum of."""
        return self.stamps.shape[1]

    @property
    def times(self) -> np.ndarray:
        """The times [time], datetime64[ns], each that of its last entry."""
        return self.stamps[:, -1]

    def take(self, index: np.ndarray) -> "Series":
        """The series at some of its times."""
        return dataclasses.replace(
            self, stamps=self.stamps[index], part=self.part[index], position=self.position[index]
        )

    def gather(self, entries: Int[np.ndarray, "time window"]) -> "Series":
        """The series of some of its entries, by their numbers."""
        flat = {name: getattr(self, name).ravel()[entries] for name in ("stamps", "part", "position")}
        return dataclasses.replace(self, **flat)

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
        window = int(window)
        last = np.arange(window - 1, len(self.times))
        last = last[self.times[last] - self.times[last - (window - 1)] == (window - 1) * step]
        return self.gather(last[:, None] + np.arange(1 - window, 1))

    def narrow(self, index: Int[np.ndarray, " time"]) -> "Series":
        """The series at some of its times, with no more of its parts than that takes: to be sent about."""
        series = self.take(index)
        numbers = np.unique(series.part)
        position, parts = series.position.copy(), []
        for number in numbers:
            array, here = self.parts[number].array, series.part == number
            if "time" in array.dims:
                first, last = position[here].min(), position[here].max()
                array = array.isel(time=slice(first, last + 1))
                position[here] -= first
            parts.append(dataclasses.replace(self.parts[number], array=array, times=None))
        return dataclasses.replace(
            series,
            parts=tuple(parts),
            conversions=tuple(self.conversions[number] for number in numbers),
            orientations=tuple(self.orientations[number] for number in numbers),
            part=np.searchsorted(numbers, series.part),
            position=position,
        )

    def read(self, index: Int[np.ndarray, " time"], *, gaps: bool = False) -> Float[np.ndarray, "time channel lat lon"]:
        """Reads some times as float32, oriented and in the units wanted; `gaps` as Source's."""
        blocks, parts, position = [], self.part[index].ravel(), self.position[index].ravel()
        for run in np.split(np.arange(len(parts)), np.flatnonzero(np.diff(parts)) + 1):
            part = parts[run[0]]
            values = read_part(self.parts[part], position[run], self.levels_hpa, gaps=gaps)
            values = self.orientations[part].apply(values)
            factor, shift = self.conversions[part]
            if (factor, shift) != (1.0, 0.0):
                values = values * np.float32(factor)
                values += np.float32(shift)
            blocks.append(values)
        values = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return values if self.window == 1 else values.reshape(-1, self.window, *values.shape[1:]).sum(axis=1)


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
        some = tuple(parts[number] for number in numbers)
        times = np.concatenate([part.times for part in some])
        order = np.argsort(times, kind="stable")
        series = Series(
            parts=some,
            conversions=tuple(part.conversion(channels[0].units) for part in some),
            orientations=tuple(orient(part) for part in some),
            channels=tuple(places),
            levels_hpa=tuple(channels[place].level_hpa for place in places if channels[place].level_hpa is not None),
            stamps=times[:, None],
            part=np.concatenate([np.full(len(part.times), number) for number, part in enumerate(some)])[:, None],
            position=np.concatenate([np.arange(len(part.times)) for part in some])[:, None],
        ).take(order)
        first = np.diff(series.times, prepend=series.times[:1] - np.timedelta64(1, "ns")) > np.timedelta64(0, "ns")
        one, hours = series.take(first), some[0].sum_hours
        pairs.append((one.sum_over(hours) if hours else one, series.take(~first)))
    return pairs


def compare_repeats(variable: str, series: Series, again: Series) -> str | None:
    """Reads what lies in a source again at a series' times: a line of what was taken once, None where there is nothing.

    Of many repeated times REPEATS_READ are compared, evenly spread. Raises ValueError naming time and files where
    values differ by more than another packing makes them differ.
    """
    series = series.gather(np.unique(series.stamps, return_index=True)[1][:, None])  # not summed
    wanted = np.flatnonzero(np.isin(again.times, series.times))
    if not len(wanted):
        return None
    compared = np.unique(wanted[np.linspace(0, len(wanted) - 1, REPEATS_READ).round().astype(int)])
    for other in compared:
        one = int(np.searchsorted(series.times, again.times[other]))
        a, b = series.read(np.array([one]), gaps=True), again.read(np.array([other]), gaps=True)
        tolerance = 3e-5 * np.ptp(a[np.isfinite(a)]) if np.isfinite(a).any() else 0
        if not np.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True):
            what = f"{variable} at {again.times[other]:.16} lies twice in the source, with different values"
            where = _tell_apart(
                series.parts[series.part[one, 0]], again.parts[again.part[other, 0]], again.times[other]
            )
            raise ValueError(f"{what}: {where}")
    files = sorted({again.parts[n].file for n in again.part[wanted, 0]})
    some = files[0] + f" and {len(files) - 1} more" * (len(files) > 1)
    what = f"{len(wanted)} times of {variable} are there again with the same values ({len(compared)} compared)"
    return f"{what}, taken once: {some}"


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
        part = other.parts[other.part[np.searchsorted(other.times, absent[0]), -1]]
        levels = ", ".join(f"{level} hPa" for level in one.levels_hpa)
        raise ValueError(
            f"{variable} on {levels} is absent at {len(absent)} of {len(times)} times, first {absent[0]:.16}, where "
            f"{part.file} has {', '.join(f'{level:g}' for level in part.levels_hpa)} hPa: leave out levels, --levels, "
            "or times, --period"
        )
