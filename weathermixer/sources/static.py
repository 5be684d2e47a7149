"""Static fields of a source: those that do not change in time, on the grid of what does."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from weathermixer.fields.ranges import plausible_range
from weathermixer.fields.variables import VARIABLES
from weathermixer.sources.names import STATIC
from weathermixer.sources.orientation import Orientation
from weathermixer.sources.parts import Note, Part, tell
from weathermixer.sources.series import read_part

Field = Float[np.ndarray, "lat lon"]
_LOWEST_GROUND = 2e4  # m2 s-2: somewhere the ground is lower than 2 km, and no geopotential above 750 hPa is


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
