"""What is wanted of a source: entries of its other dimensions, channels, static fields, chosen from what is there."""

import re
from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float

from weathermixer.fields.units import plausible_range
from weathermixer.fields.variables import VARIABLES, Channel, group_by_variable
from weathermixer.sources.coordinates import DIMENSIONS, Orientation
from weathermixer.sources.names import STATIC, SURFACE, split_level
from weathermixer.sources.parts import Note, Part, tell
from weathermixer.sources.series import read_part
from weathermixer.sources.times import LEADS, read_lead

Field = Float[np.ndarray, "lat lon"]
_LOWEST_GROUND = 2e4  # m2 s-2: somewhere the ground is lower than 2 km, and no geopotential above 750 hPa is


def select_entry(pieces: Sequence[xr.Dataset], name: str, value: str) -> list[xr.Dataset]:
    """The pieces at one entry of a dimension that some have: pieces of other entries are dropped, those without stay.

    Raises ValueError where no piece has the dimension, or none the entry, with what there is.
    """
    if name in {dim for canonical in DIMENSIONS for dim in DIMENSIONS[canonical]}:
        raise ValueError(f"select {name}={value}: --period, --step and --exclude choose times, --levels levels")
    kept, offered, found = [], {}, False
    for piece in pieces:
        if name not in piece.dims and name not in piece.coords:
            kept.append(piece)
            continue
        entries = _entries(piece, name)
        offered |= dict.fromkeys(entries)
        numbers = [_as_number(entry) for entry in entries]
        if _as_number(value) in numbers:
            along = piece[name].dims  # a lead may have a dimension of another name
            kept.append(piece.isel({along[0]: numbers.index(_as_number(value))}) if along else piece)
            found = True
    if not offered:
        there = sorted({str(dim) for piece in pieces for dim in piece.dims})
        raise ValueError(f"select {name}={value}: there is no {name}; dimensions are {', '.join(there)}")
    if not found:
        raise ValueError(f"select {name}={value}: there is no such {name}; it has {', '.join(offered)}")
    return kept


def refuse_one_beside_many(pieces: Sequence[xr.Dataset]) -> None:
    """ValueError for a variable with a dimension, as members, in one piece, and one entry of it, as control, beside."""
    single = {(str(n), v) for piece in pieces for n, c in piece.coords.items() if not c.ndim for v in piece.data_vars}
    for piece in pieces:
        for dim in {str(dim) for dim in piece.dims if dim in piece.coords}.difference(*DIMENSIONS.values(), LEADS):
            both = [variable for variable in piece.data_vars if (dim, variable) in single]
            if both:
                entries = ", ".join(_entries(piece, dim))
                where = piece.encoding.get("source", "dataset")
                raise ValueError(
                    f"{both[0]} is there with {dim} {entries} in {where}, and beside: --select={dim}=VALUE"
                )


def find_entries(pieces: Sequence[xr.Dataset], names: Sequence[str]) -> tuple[str | None, list[str]]:
    """(The first of some dimensions or coordinates that pieces have, its entries as select_entry wants them)."""
    for name in names:
        entries = dict.fromkeys(e for p in pieces if name in p.dims or name in p.coords for e in _entries(p, name))
        if entries:
            return name, list(entries)
    return None, []


def _entries(piece: xr.Dataset, name: str) -> list[str]:
    """The values of a dimension or of a coordinate, as they are written on a command line."""
    if name not in piece.coords:
        return [str(number) for number in range(piece.sizes[name])]
    lead = read_lead(piece.coords[name], source=str(piece.encoding.get("source", "dataset")))
    if lead is not None:
        return [f"{hours:g}h" for hours in np.atleast_1d(lead / np.timedelta64(1, "h"))]
    values = np.atleast_1d(piece.coords[name].values).tolist()
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _as_number(text: str) -> float | str:
    """0005, 5 and 5.0 are the same entry, and so are 6h, 6 hours and 6."""
    try:
        return float(re.sub(r"\s*(h|hours?)$", "", text))
    except ValueError:
        return text


def choose_channels(
    parts: Sequence[Part],
    notes: Sequence[Note],
    variables: Sequence[str] | None,
    levels_hpa: Sequence[int] | None,
    *,
    source: str,
) -> tuple[Channel, ...]:
    """The channels that are asked for, a variable's together; None means all known variables, or all levels.

    A variable is asked for by its own name or the source's, with a level or without. Raises ValueError naming what is
    not there, and what is, or why it was left out.
    """
    parts = [part for part in parts if part.times is not None]
    names = sorted({f"{part.given} {tuple(map(str, part.array.dims))}" for part in parts})
    it_has = "; ".join(
        [f"it has {', '.join(names) or 'none that changes with time'}", *tell(note for note in notes if note.left_out)]
    )
    if variables is None:
        known = {part.variable for part in parts} - {*STATIC}
        variables = [name for name in dict.fromkeys((*SURFACE, *VARIABLES)) if name in known]
        if not variables:
            raise ValueError(f"{source} holds none of the variables that are known; {it_has}")
    channels = []
    for text in variables:
        found, level = _find(parts, text)
        if not found:
            reasons = "; ".join(tell(note for note in notes if note.left_out == text))
            raise ValueError(f"{source} has no variable {text!r}; {reasons or it_has}")
        first = found[0]
        if odd := next((part for part in found if bool(part.levels_hpa) != bool(first.levels_hpa)), None):
            raise ValueError(f"{first.variable} has levels in one of {first.file} and {odd.file} alone: leave one out")
        if not first.levels_hpa:
            if level is not None:
                raise ValueError(f"{first.variable} in {source} has no levels, {level:g} hPa was asked for")
            channels.append(Channel(first.variable, units=first.units))
            continue
        there = sorted({level for part in found for level in part.levels_hpa}, reverse=True)
        asked = [level] if level is not None else there if levels_hpa is None else levels_hpa
        for level in asked:
            if level not in there:
                raise ValueError(f"{source} has no level {level:g} hPa of {first.variable}; it has {there}")
            if level != int(level):
                raise ValueError(
                    f"{source} has level {level} hPa, and only whole ones have names: choose with --levels"
                )
            channels.append(Channel(first.variable, int(level), first.units))
    if levels_hpa and not any(channel.level_hpa in levels_hpa for channel in channels):
        raise ValueError(f"levels_hpa={list(levels_hpa)} are of none of {', '.join(variables)}: leave out --levels")
    names = [channel.name for channel in channels]
    if len(set(names)) < len(names):
        raise ValueError(f"channels named twice: {sorted({name for name in names if names.count(name) > 1})}")
    # the channels of a variable are read together, so they lie together
    return tuple(channels[index] for group in group_by_variable(channels).values() for index in group)


def _find(parts: Sequence[Part], text: str) -> tuple[list[Part], float | None]:
    """The parts of the variable that is asked for, and the level where `text` has one."""
    given = {part.given: part.variable for part in sorted(parts, key=lambda part: part.variable not in STATIC)}
    named = {part.variable for part in parts}
    variable, level = text, None
    if text not in named:
        base, _, number = text.rpartition("_")
        variable, level = split_level(text)  # z500 is its own level, t is all that t has
        if text in given:
            variable = given[text]
        elif number.isdigit() and (base in named or base in given):
            variable, level = base if base in named else given[base], float(number)
    return [part for part in parts if part.variable == variable], level


def read_static(
    parts: Sequence[Part],
    names: Sequence[str] | None,
    orient: Callable[[Part], Orientation],
    notes: list[Note],
    *,
    source: str,
) -> dict[str, Field]:
    """The static fields that are asked for, or all that are known and there; what is not taken as one is noted.

    Raises ValueError where one that is asked for is not there, and for values that are missing or cannot be.
    """
    fields = {}
    for name in STATIC if names is None else names:
        refused: list[Note] = []
        holders = [part for part in parts if name in (part.variable, part.given) and not part.levels_hpa]
        # the timeless ones first: what changes in time is no static field, as z on a level that is not named
        for some in ([p for p in holders if p.times is None], [p for p in holders if p.times is not None]):
            field = _read_field(some, name, orient, refused)
            if field is not None:
                fields.setdefault(name, field)
        if name not in fields and names is not None:
            reasons = "; ".join(tell(refused)) or f"it has {sorted({part.given for part in parts})}"
            raise ValueError(f"{source} has no static field {name!r}; {reasons}")
        notes += refused
    return fields


def _read_field(
    holders: Sequence[Part], name: str, orient: Callable[[Part], Orientation], refused: list[Note]
) -> Field | None:
    """The field that is the same in the first, middle and last of some parts and their times; None where none is."""
    places = []
    for part in holders:
        try:
            orientation = orient(part)
        except ValueError as error:
            refused.append(Note(str(error), part.file, part.given))
            continue
        part = part.fit(orientation, VARIABLES[part.variable].units if part.variable in VARIABLES else part.units)
        places += [(part, time) for time in range(1 if part.times is None else len(part.times))]
    if not places:
        return None
    (part, _), last = places[0], len(places) - 1
    chosen = [places[n] for n in sorted({0, len(places) // 2, last})]
    fields = np.stack([read_part(one, np.array([time]))[0, 0] for one, time in chosen])
    if missing := np.count_nonzero(~np.isfinite(fields), axis=(1, 2)).max():
        raise ValueError(f"static field {name} in {part.file} has {missing} values that are missing")
    field, reason = fields[0], ""
    if np.abs(fields - field).max() > 1e-3 * np.ptp(field):
        hint = f": name its level if it is on one, --rename {part.given}=geopotential_500" if part.given == "z" else ""
        what = "differs between files" if part.times is None else "changes with time"
        reason = f"{what}, {name} does not{hint}"
    elif name == "geopotential_at_surface" and field.min() > _LOWEST_GROUND:
        reason = f"nowhere below {field.min():.0f} m2/s2: not the ground's"
    low, high = plausible_range(name)
    if not reason and (field.min() < low or field.max() > high):
        what = f"values from {field.min():.6g} to {field.max():.6g} are out of the range of {low:g} to {high:g}"
        raise ValueError(f"static field {name} in {part.file}: {what}: say its unit, --units {part.given}=UNIT")
    if reason:
        refused.append(Note(reason, part.file, part.given))
        return None
    return field
