"""What is checked of fields on their way into an archive: that they are there, can be, and lie the right way round."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from weathermixer.fields.units import plausible_range
from weathermixer.fields.variables import Channel

FAULTS_SHOWN = 10
MARKS = (-99999.0, -9999.0, -999.0, 9999.0, 99999.0)  # of missing values, which are looked for in any variable
COLUMNS = 32  # from which the means along rows are estimated
# The means along rows of a field that is turned over the equator are much nearer to those before once turned back. In
# ERA5, GFS and ICON, at steps of 6 to 24 h, they are at least 0.84 times as far then where nothing was turned.
TURNED = 0.5


def check_fields(
    fields: Float[np.ndarray, "channel lat lon"],
    time: np.datetime64,
    channels: Sequence[Channel],
    missing: Float[np.ndarray, " channel"],
    minimum: Float[np.ndarray, " channel"],
    maximum: Float[np.ndarray, " channel"],
    *,
    masks: Bool[np.ndarray, "channel lat lon"] | None = None,
    before: Float[np.ndarray, "channel lat lon"] | None = None,
) -> tuple[list[str], Bool[np.ndarray, " channel"]]:
    """(faults, where other points are missing than `masks`) of the channels of a variable at one time.

    A fault names a channel that holds missing, infinite or impossible values, or nothing but equal ones, with counts.
    Points that are missing at the archive's first time, `masks`, are no fault where they, and they alone, are missing:
    such as land where the sea's surface is meant. `missing` counts the values that are not finite; the range is that of
    the others. `before` are the fields a short time before, to which none may lie upside down.
    """
    odd = find_impossible(fields, channels, minimum, maximum)
    turned = np.zeros(len(channels), bool) if before is None else _find_turned(fields, before)
    faults, changed = [], np.zeros(len(channels), bool)
    masked = np.zeros(len(channels), bool) if masks is None else masks.any(axis=(1, 2))
    suspect = (missing > 0) | masked | (minimum == maximum) | turned | np.isin(range(len(channels)), list(odd))
    for n in np.flatnonzero(suspect):
        values, nan, found = fields[n], np.isnan(fields[n]), [odd[n]] if n in odd else []
        infinite = int(missing[n]) - int(nan.sum())
        changed[n] = (nan != (masks[n] if masked[n] else False)).any()
        if changed[n] or infinite or nan.all():
            counts = [f"{nan.sum()} missing (NaN)"] * bool(changed[n] or nan.any())
            counts = " and ".join([*counts, *[f"{infinite} infinite"] * bool(infinite)])
            of_first = f", and at the first time {masks[n].sum()}" if masked[n] and changed[n] else ""
            found.insert(0, f"{counts} of {values.size} values{of_first}")
        if minimum[n] == maximum[n]:
            found.append(f"constant, every value is {values.flat[np.argmin(nan)]}")
        if turned[n]:
            found.append("it is upside down to the time before, or that is")
        if found:
            faults.append(f"{channels[n].name} at {time.astype('datetime64[m]')}: {'; '.join(found)}")
    return faults, changed


def find_impossible(
    fields: Float[np.ndarray, "channel lat lon"],
    channels: Sequence[Channel],
    minimum: Float[np.ndarray, " channel"],
    maximum: Float[np.ndarray, " channel"],
) -> dict[int, str]:
    """Channels with values out of the range of what there is on Earth, or with marks of missing values: how many."""
    low, high = np.array([plausible_range(channel.variable, channel.level_hpa) for channel in channels]).T
    found = {}
    for n in np.flatnonzero((minimum < low) | (maximum > high) | np.isin(minimum, MARKS) | np.isin(maximum, MARKS)):
        values = fields[n][np.isfinite(fields[n])]
        outside = values[(values < low[n]) | (values > high[n])]
        if len(outside):
            worst = outside[np.argmax(np.maximum(low[n] - outside, outside - high[n]))]
            limits = f"{low[n]:.6g} to {high[n]:.6g} {channels[n].units}".rstrip()
            found[int(n)] = (
                f"{len(outside)} of {fields[n].size} values, such as {worst:.6g}, are out of the range of {limits}"
            )
            continue
        for mark in {float(values.min()), float(values.max())} & set(MARKS):
            others = values[values != mark]
            count = len(values) - len(others)
            # a value among others may be that by chance
            if count > 1 and len(others) and np.abs(others - mark).min() > abs(mark) / 2:
                found[int(n)] = f"{count} of {fields[n].size} values are {mark:g}, a mark of missing values"
    return found


def _find_turned(fields: np.ndarray, before: np.ndarray) -> Bool[np.ndarray, " channel"]:
    """Where fields [channel, lat, lon] lie upside down to those a short time before."""
    step = max(1, fields.shape[-1] // COLUMNS)
    now, then = fields[..., ::step].astype(np.float64), before[..., ::step].astype(np.float64)
    with np.errstate(invalid="ignore"):  # missing values tell nothing
        spread = np.square(now.std(axis=-1)).sum(axis=-1)  # within rows: what is no more may be chance
        now, then = now.mean(axis=-1), then.mean(axis=-1)
        apart, apart_turned = (np.square(now - other).sum(axis=-1) for other in (then, then[:, ::-1]))
    return (apart > spread) & (apart_turned < TURNED**2 * apart)


def describe_faults(faults: Sequence[str], path: str) -> str:
    """The message of a prepare that stops at faulty fields."""
    more = f"\n  and {len(faults) - FAULTS_SHOWN} more in these times" if len(faults) > FAULTS_SHOWN else ""
    shown = "\n  ".join(faults[:FAULTS_SHOWN])
    units = any("out of the range" in fault for fault in faults)
    remedy = "a wrong unit is set right by --units=NAME=UNIT, a mark of missing values by the file's _FillValue; "
    return (
        f"the source holds faulty fields, {path} is not published:\n  {shown}{more}\n{remedy * units}"
        "leave these times out (--exclude=TIME,... or another --period) or the variable, or keep them (--keep-faults)"
    )
