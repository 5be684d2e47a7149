"""A source in parts: one variable as one file has it, under WeatherBench 2's name, and what was left out and why."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float

from weathermixer.fields.units import conversion
from weathermixer.fields.variables import VARIABLES
from weathermixer.sources.coordinates import Levels, Orientation, find_levels, make_orientation
from weathermixer.sources.names import HEIGHT, STATIC, amounts_of, identify, rank

NAMES_SHOWN = 12  # in one line


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """One variable in one file; of a part that is read, `fit` tells orientation and scaling."""

    variable: str
    given: str  # the variable's name in the file
    file: str
    array: xr.DataArray  # on latitude, longitude and what it has of time and level, in any order
    times: np.ndarray | None  # [time], None where it has no time
    levels_hpa: tuple[float, ...]  # none at the surface
    latitude: Float[np.ndarray, " row"]
    longitude: Float[np.ndarray, " column"]
    units: str  # in the file, or those that set it right
    sum_hours: int = 0  # the variable is the sum over the last so many of what the file has; 0: it is that itself
    orientation: Orientation | None = None  # onto the grid
    scaling: tuple[float, float] = (1.0, 0.0)  # (factor, shift) into the units wanted

    def fit(self, orientation: Orientation, units: str) -> "Part":
        """The part as it is read; ValueError that names variable, unit, file and remedy."""
        known, scaling = self.variable in VARIABLES, (1.0, 0.0)
        if self.units != units and (self.units or not known):
            try:
                scaling = conversion(self.units, units, bridged=known)
            except ValueError as error:
                name = self.given if self.given == self.variable else f"{self.given} ({self.variable})"
                remedy = f"say what it is, --units {self.given}=UNIT"
                raise ValueError(f"{self.file}: {name}: {error}: {remedy}") from None
        return dataclasses.replace(self, orientation=orientation, scaling=scaling)


@dataclasses.dataclass(frozen=True)
class Note:
    """What was made of a file, or why a variable of it is left out."""

    what: str
    file: str
    left_out: str = ""


def tell(notes: Iterable[Note]) -> list[str]:
    """Lines for the account: all variables that a file's reason is for together, and one file of several."""
    names: dict[tuple[str, str], dict[str, None]] = {}
    for note in notes:
        names.setdefault((note.what, note.file), {})[note.left_out] = None
    files: dict[str, list[str]] = {}
    for (what, file), some in names.items():
        shown = ", ".join([*some][:NAMES_SHOWN]) + f" and {len(some) - NAMES_SHOWN} more" * (len(some) > NAMES_SHOWN)
        files.setdefault(f"left out {shown}, {what}" if shown else what, []).append(file)
    return [f"{what}: {some[0]}" + f" and {len(some) - 1} more" * (len(some) > 1) for what, some in files.items()]


def take_apart(
    pieces: Sequence[xr.Dataset], notes: list[Note], *, rename: Mapping[str, str], units: Mapping[str, str], source: str
) -> list[Part]:
    """The variables of datasets whose dimensions are named (see `coordinates.rename_dimensions`).

    rename: name there -> name. units: name, there or here, or of a coordinate -> unit, in the place of what is said.
    Raises ValueError for names in either that are not there.
    """
    parts = [part for piece in pieces for part in _take_one(piece, notes, rename, units)]
    there = {str(name) for piece in pieces for name in piece.variables}
    for option, given, known in (("rename", rename, set()), ("units", units, {part.variable for part in parts})):
        if absent := ", ".join(sorted(given.keys() - there - known)):
            raise ValueError(f"{option}: {source} has no {absent}; it has {', '.join(sorted(there))}")
    return parts


def _take_one(
    dataset: xr.Dataset, notes: list[Note], rename: Mapping[str, str], units: Mapping[str, str]
) -> list[Part]:
    file = str(dataset.encoding.get("source", "dataset"))
    verticals = find_levels(dataset, units)
    # shared by all parts
    latitude, longitude = (dataset[name].values.astype(np.float64) for name in ("latitude", "longitude"))
    times = np.atleast_1d(dataset["time"].values) if "time" in dataset.coords else None
    parts = []
    for key, array in dataset.data_vars.items():
        name = str(key)
        try:
            variable, levels, array = _identify(array, rename.get(name, name), verticals)
        except ValueError as error:
            notes.append(Note(str(error), file, name))
            continue
        is_static = times is None or (variable in STATIC and "time" not in array.dims)
        is_height = any(HEIGHT.fullmatch(called) for called in (name, rename.get(name, name)))
        there = array.attrs.get("units", "m" if is_height else "")
        unit = str(units.get(name, units.get(variable, there))).strip()
        parts.append(Part(variable, name, file, array, None if is_static else times, levels, latitude, longitude, unit))
    taken: dict[tuple, Part] = {}
    for part in sorted(parts, key=lambda part: rank(part.variable, part.given)):
        same = [taken.setdefault((part.variable, level), part) for level in part.levels_hpa or (None,)]
        if other := next((other for other in same if other is not part), None):
            notes.append(Note(f"{part.variable} is taken from {other.given}", file, part.given))
            parts.remove(part)
    return parts


def make_orient(first: Part, *, crop_south_pole: bool, coarsen: int) -> Callable[[Part], Orientation]:
    """A function that finds how a part lies on the grid of the first: each is turned by its own coordinates.

    Raises ValueError where the first part's grid is not global and regular, and the function for parts on another grid.
    """
    made: dict[tuple[bytes, bytes], Orientation] = {}  # shared by all parts that lie the same way

    def orient(part: Part) -> Orientation:
        key = part.latitude.tobytes(), part.longitude.tobytes()
        if key not in made:
            options = {"crop_south_pole": crop_south_pole, "coarsen": coarsen, "source": part.file}
            made[key] = make_orientation(part.latitude, part.longitude, **options)
        if difference := next(iter(made.values())).grid.difference(made[key].grid):
            raise ValueError(f"{part.file} is on another grid than {first.file}: {part.given} has {difference}")
        return made[key]

    orient(first)
    return orient


def find_sums(parts: Iterable[Part], variables: Iterable[str]) -> list[Part]:
    """Parts of variables such as total_precipitation_6hr that are asked for, and lie in the file as amounts per step.

    A value is the sum of the file's values in the 6 h up to its time, each the amount since the one before.
    """
    parts, found = list(parts), []
    for name in variables:
        hours, names = amounts_of(name)
        if hours and not any(part.variable == name for part in parts):
            some = (part for part in parts if {part.variable, part.given} & set(names) and part.times is not None)
            found += [dataclasses.replace(part, variable=name, sum_hours=hours) for part in some]
    return found


def _identify(
    array: xr.DataArray, name: str, verticals: Mapping[str, Levels]
) -> tuple[str, tuple[float, ...], xr.DataArray]:
    """(variable, levels, the array without other dimensions); ValueError with the reason where it is left out."""
    if not {"latitude", "longitude"} <= set(array.dims):
        raise ValueError(f"not on latitude and longitude but on {', '.join(map(str, array.dims)) or 'nothing'}")
    more = [str(dim) for dim in array.dims if dim not in ("time", "latitude", "longitude")]
    others = {dim: array.sizes[dim] for dim in more if dim not in verticals}
    if others:
        raise ValueError(f"more dimensions, {others}: select one entry, {next(iter(others))}=VALUE")
    if len(more) > 1:
        raise ValueError(f"two vertical dimensions, {', '.join(more)}")
    own = verticals[more[0]] if more else Levels()
    if own.reason and array.sizes[more[0]] > 1:
        raise ValueError(own.reason)
    scalars = [verticals[str(key)] for key, c in array.coords.items() if key in verticals and not c.ndim]
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
