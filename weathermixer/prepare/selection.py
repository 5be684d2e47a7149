"""What is wanted of a source: its channels and its times, chosen from what is there."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from weathermixer.archive.sampling import in_period
from weathermixer.fields.variables import VARIABLES, Channel, group_by_variable, parse_channel
from weathermixer.prepare.names import STATIC, SURFACE, find_variable

HOUR = np.timedelta64(1, "h")
EPOCH = np.datetime64("1970-01-01T00", "ns")


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


def choose_times(
    times: Sequence[np.ndarray],
    *,
    period: tuple[str, str] | None,
    step_hours: int | None,
    exclude: Sequence[str],
    source: str,
) -> tuple[np.ndarray, np.ndarray, int]:
    """(times, missing times, step_hours): those that all variables have, in the period, on whole steps.

    Raises ValueError where there are none, naming what there is.
    """
    there = times[0]
    for more in times[1:]:
        there = np.intersect1d(there, more)
    everywhere = there
    if period is not None:
        there = there[in_period(there, period)]
    if not len(there):
        ends = f"{everywhere[0]} ... {everywhere[-1]}" if len(everywhere) else "no times that all variables have"
        raise ValueError(f"{source} has no times in {period}; it has {ends}")
    own = np.median(np.diff(there).astype(np.int64)).astype("timedelta64[ns]") if len(there) > 1 else HOUR
    if step_hours is None:
        step_hours = max(6, int(own / HOUR))
    step = step_hours * HOUR
    if step_hours < 1 or step % own != np.timedelta64(0, "ns"):
        raise ValueError(f"step_hours={step_hours} is not a multiple of {own / HOUR:g} h, the step of {source}")
    phases = np.unique((there - EPOCH) % step)
    # 00, 06, 12, 18 UTC where there are such times, else the one other phase that the source has
    phase = phases[0] if len(phases) == 1 else np.timedelta64(0, "ns")
    there = there[(there - EPOCH) % step == phase]
    if not len(there):
        raise ValueError(f"{source} has no times that are {step_hours} h apart from 00 UTC")
    expected = np.arange(there[0], there[-1] + step, step)
    unwanted = np.array([np.datetime64(text, "ns") for text in exclude], "datetime64[ns]")
    absent = np.setdiff1d(unwanted, there)
    if len(absent):
        raise ValueError(f"times to exclude are not in {source}: {[str(t) for t in absent]}")
    there = np.setdiff1d(there, unwanted)
    return there, np.setdiff1d(expected, there), step_hours
