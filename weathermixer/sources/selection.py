"""What is wanted of a source: its channels, chosen from what is there."""

from collections.abc import Sequence

from weathermixer.fields.variables import VARIABLES, Channel, group_by_variable
from weathermixer.sources.names import STATIC, SURFACE, split_level
from weathermixer.sources.parts import LeftOut, Part, make_notes
from weathermixer.sources.times import gather_notes


def choose_channels(
    parts: Sequence[Part],
    left_out: Sequence[LeftOut],
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
    if variables is None:
        there = {part.variable for part in parts}
        known = dict.fromkeys((*SURFACE, *VARIABLES))
        variables = [name for name in known if name in there and name not in STATIC]
        if not variables:
            raise ValueError(f"{source} holds none of the variables that are known; {_describe(parts, left_out)}")
    channels = []
    for text in variables:
        found, level = _find(parts, text)
        if not found:
            reasons = "; ".join(gather_notes(make_notes(item for item in left_out if item.name == text)))
            raise ValueError(f"{source} has no variable {text!r}; {reasons or _describe(parts, left_out)}")
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
    names = [channel.name for channel in channels]
    if len(set(names)) < len(names):
        raise ValueError(f"channels named twice: {sorted({name for name in names if names.count(name) > 1})}")
    # the channels of a variable are read together, so they lie together
    order = [index for group in group_by_variable(channels).values() for index in group]
    return tuple(channels[index] for index in order)


def _find(parts: Sequence[Part], text: str) -> tuple[list[Part], float | None]:
    """The parts of the variable that is asked for, and the level where `text` has one."""
    named = {part.variable: part.variable for part in parts}
    given = {part.given: part for part in sorted(parts, key=lambda part: part.variable not in STATIC)}
    if text in named:
        return [part for part in parts if part.variable == text], None
    if text in given:  # z500 is its own level, t is all that t has
        part = given[text]
        _, level = split_level(text)
        return [other for other in parts if other.variable == part.variable], level
    base, _, number = text.rpartition("_")
    if number.isdigit() and (base in named or base in given):
        return _find(parts, base)[0], float(number)
    base, level = split_level(text)
    return ([part for part in parts if part.variable == base], level) if level is not None else ([], None)


def _describe(parts: Sequence[Part], left_out: Sequence[LeftOut]) -> str:
    """Variables and dimensions of a source and what of it was left out, for messages."""
    names = sorted({f"{part.given} {tuple(str(dim) for dim in part.array.dims)}" for part in parts})
    there = f"it has {', '.join(names)}" if names else "it has none that changes with time"
    return "; ".join([there, *gather_notes(make_notes(left_out))])
