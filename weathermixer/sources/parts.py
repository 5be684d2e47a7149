"""A source in parts: one variable as one file has it, under WeatherBench 2's name, and what was left out and why."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
import xarray as xr
from jaxtyping import Float

from weathermixer.fields.units import conversion
from weathermixer.fields.variables import VARIABLES
from weathermixer.sources.coordinates import Levels, find_levels
from weathermixer.sources.names import STATIC, amounts_of, identify, is_height, rank, sum_hours
from weathermixer.sources.times import Note

NAMES_SHOWN = 12  # in one line


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """One variable in one file: `array` lies on latitude, longitude and what it has of time and level, in any order.

    times [time] are None where it has no time; levels_hpa are empty at the surface. `given` is the variable's name in
    the file, `units` its unit there, or that which sets it right. The variable is the sum over the last `sum_hours` of
    what the file has, where that is not 0 (see `find_sums`).
    """

    variable: str
    given: str
    file: str
    array: xr.DataArray
    times: np.ndarray | None
    levels_hpa: tuple[float, ...]
    latitude: Float[np.ndarray, " row"]
    longitude: Float[np.ndarray, " column"]
    units: str
    sum_hours: int = 0

    def conversion(self, wanted: str) -> tuple[float, float]:
        """(factor, shift) to the units wanted; ValueError that names variable, unit, file and remedy."""
        known = self.variable in VARIABLES
        if self.units == wanted or (known and not self.units):
            return 1.0, 0.0
        try:
            return conversion(self.units, wanted, bridged=known)
        except ValueError as error:
            name = self.given if self.given == self.variable else f"{self.given} ({self.variable})"
            raise ValueError(f"{self.file}: {name}: {error}: say what it is, --units {self.given}=UNIT") from None


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A variable of a file that is not taken, and why."""

    name: str
    file: str
    reason: str


def take_apart(
    dataset: xr.Dataset, *, rename: Mapping[str, str], units: Mapping[str, str]
) -> tuple[list[Part], list[LeftOut]]:
    """The variables of a dataset whose dimensions are named (see `coordinates.rename_dimensions`).

    rename: name there -> name. units: name, there or here, or of a coordinate -> unit, in the place of what is said.
    """
    file = str(dataset.encoding.get("source", "dataset"))
    verticals = find_levels(dataset, units)
    # shared by all parts
    latitude, longitude = (dataset[name].values.astype(np.float64) for name in ("latitude", "longitude"))
    times = np.atleast_1d(dataset["time"].values) if "time" in dataset.coords else None
    parts, left_out = [], []
    for key, array in dataset.data_vars.items():
        name = str(key)
        try:
            variable, levels, array = _identify(array, rename.get(name, name), verticals)
        except ValueError as error:
            left_out.append(LeftOut(name, file, str(error)))
            continue
        is_static = times is None or (variable in STATIC and "time" not in array.dims)
        there = array.attrs.get("units", "m" if is_height(name) or is_height(rename.get(name, name)) else "")
        unit = str(units.get(name, units.get(variable, there))).strip()
        parts.append(Part(variable, name, file, array, None if is_static else times, levels, latitude, longitude, unit))
    taken: dict[tuple, Part] = {}
    for part in sorted(parts, key=lambda part: rank(part.variable, part.given)):
        same = [taken.setdefault((part.variable, level), part) for level in part.levels_hpa or (None,)]
        if other := next((other for other in same if other is not part), None):
            left_out.append(LeftOut(part.given, file, f"{part.variable} is taken from {other.given}"))
            parts.remove(part)
    return parts, left_out


def find_sums(parts: Iterable[Part], variables: Iterable[str]) -> list[Part]:
    """Parts of variables such as total_precipitation_6hr that are asked for, and lie in the file as amounts per step.

    A value is the sum of the file's values in the 6 h up to its time, each the amount since the one before.
    """
    parts, found = list(parts), []
    for name in variables:
        names = amounts_of(name)
        if names and not any(part.variable == name for part in parts):
            some = (part for part in parts if {part.variable, part.given} & set(names) and part.times is not None)
            found += [dataclasses.replace(part, variable=name, sum_hours=sum_hours(name)) for part in some]
    return found


def make_notes(left_out: Iterable[LeftOut]) -> list[Note]:
    """What was left out, for the account: a note for each file and reason."""
    names: dict[tuple[str, str], list[str]] = {}
    for item in left_out:
        names.setdefault((item.reason, item.file), []).append(item.name)
    return [
        (
            f"left out {', '.join(n[:NAMES_SHOWN])}"
            + f" and {len(n) - NAMES_SHOWN} more" * (len(n) > NAMES_SHOWN)
            + f", {reason}",
            file,
        )
        for (reason, file), n in names.items()
    ]


def _identify(
    array: xr.DataArray, name: str, verticals: Mapping[str, Levels]
) -> tuple[str, tuple[float, ...], xr.DataArray]:
    """(variable, levels, the array without other dimensions); ValueError with the reason where it is left out."""
    if not {"latitude", "longitude"} <= set(array.dims):
        raise ValueError(f"not on latitude and longitude but on {', '.join(map(str, array.dims)) or 'nothing'}")
    if "time" in array.dims and "time" not in array.coords:
        raise ValueError("its time dimension has no coordinate")
    more = [str(dim) for dim in array.dims if dim not in ("time", "latitude", "longitude")]
    others = {dim: array.sizes[dim] for dim in more if dim not in verticals}
    if others:
        raise ValueError(f"more dimensions, {others}: select one entry, {next(iter(others))}=VALUE")
    if len(more) > 1:
        raise ValueError(f"two vertical dimensions, {', '.join(more)}")
    own = verticals[more[0]] if more else Levels()
    if own.reason and array.sizes[more[0]] > 1:
        raise ValueError(own.reason)
    scalars = [levels for levels in verticals.values() if levels.beside]
    try:
        variable, level = identify(name, levels=own.hpa, beside={level for one in scalars for level in one.hpa})
    except ValueError as error:
        raise ValueError(next((one.reason for one in (own, *scalars) if one.reason), str(error))) from None
    if more and not own.hpa:
        array = array.isel({more[0]: 0})  # a height above the ground or a depth, which is the variable's own
    new = {more[0]: "level"} if own.hpa else {}
    chunks = array.encoding.get("preferred_chunks", {})
    array = array.drop_vars([name for name, coordinate in array.coords.items() if coordinate.ndim]).rename(new)
    array.encoding = array.encoding | {"preferred_chunks": {new.get(dim, dim): size for dim, size in chunks.items()}}
    return variable, own.hpa or (() if level is None else (level,)), array
