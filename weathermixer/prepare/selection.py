"""What is wanted of a source: its channels, chosen from what is there."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from weathermixer.fields.variables import VARIABLES, Channel, group_by_variable, parse_channel
from weathermixer.prepare.names import STATIC, SURFACE, find_variable


def choose_channels(
    pieces: Sequence[xr.Dataset], variables: Sequence[str] | None, levels_hpa: Sequence[int] | None, *, source: str
) -> tuple[Channel, ...]:
    """The channels that are asked for, a variable's together; None means all known variables, or all levels.

    Raises ValueError naming a variable or level that is not there, and what is.
    """
    if variables is None:
        dynamic = (*SURFACE, *(name for name in VARIABLES if name not in SURFACE + STATIC))
        variables = [name for name in dynamic if any(_has_times(piece, name) for piece in pieces)]
        if not variables:
            raise ValueError(
                f"{source} holds none of {list(dynamic)}; {describe_contents(pieces)}: choose with --variables"
            )
    channels = []
    for text in variables:
        channel = parse_channel(text)
        holders = [piece for piece in pieces if find_variable(piece, channel.variable)]
        if not holders:
            raise ValueError(f"{source} has no variable {channel.variable!r}; {describe_contents(pieces)}")
        array = holders[0][find_variable(holders[0], channel.variable)]
        if "level" not in array.dims and channel.level_hpa is not None:
            raise ValueError(f"{channel.variable} in {source} has no levels, {channel.level_hpa} hPa was asked for")
        if "level" not in array.dims:
            channels.append(channel)
            continue
        there = sorted((float(level) for level in array["level"].values), reverse=True)
        ask = there if levels_hpa is None else levels_hpa
        for level in ask if channel.level_hpa is None else [channel.level_hpa]:
            if not np.any(np.isclose(there, level)):
                raise ValueError(f"{source} has no level {level:g} hPa of {channel.variable}; it has {there}")
            if level != int(level):
                raise ValueError(
                    f"{source} has level {level} hPa, and only whole ones have names: choose with --levels"
                )
            channels.append(Channel(channel.variable, int(level)))
    names = [channel.name for channel in channels]
    if len(set(names)) < len(names):
        raise ValueError(f"channels named twice: {sorted({name for name in names if names.count(name) > 1})}")
    # the channels of a variable are read together, so they lie together
    order = [index for group in group_by_variable(channels).values() for index in group]
    return tuple(channels[index] for index in order)


def _has_times(piece: xr.Dataset, name: str) -> bool:
    found = find_variable(piece, name)
    return found is not None and "time" in piece[found].dims


def describe_contents(pieces: Sequence[xr.Dataset]) -> str:
    """Variables and dimensions of a source, for messages."""
    names = {
        f"{name} {tuple(str(d) for d in array.dims)}" for piece in pieces for name, array in piece.data_vars.items()
    }
    return f"it has {', '.join(sorted(names))}"
