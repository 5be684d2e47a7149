"""What is measured of fields on their way into an archive, and checked: that they are there, can be, and lie right.

Statistics of channels are of a sample, for the packing, and from sums over all fields, of deviations in float64.

    d = x - shift     mean = shift + sum w d / sum w     std^2 = (sum w d^2 - (sum w d)^2 / sum w) / sum w

A field's sums are the same wherever it is read and with whatever else, and they are added in the order of the times:
statistics do not depend on how many processes make an archive, nor on which of them makes what.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from weathermixer.archive.archive import Statistics
from weathermixer.archive.layout import DTYPES, choose_packing, rounding_error
from weathermixer.archive.sampling import spread
from weathermixer.fields.units import plausible_range
from weathermixer.fields.variables import Channel
from weathermixer.prepare.workers import Workers
from weathermixer.sources.sources import Source

SAMPLE_TIMES = 16  # evenly over the record, from which scale and offset are chosen
SAMPLE_BYTES = 4 * 2**20  # of one variable

FAULTS_SHOWN = 10
MARKS = (-99999.0, -9999.0, -999.0, 9999.0, 99999.0)  # of missing values, which are looked for in any variable
COLUMNS = 32  # from which the means along rows are estimated
# The means along rows of a field that is turned over the equator are much nearer to those before once turned back. In
# ERA5, GFS and ICON, at steps of 6 to 24 h, they are at least 0.84 times as far then where nothing was turned.
TURNED = 0.5

# Rows of a table of sums: of the values that are finite, of their changes over 6 h, how many are not finite, the range
ROWS = ("weight", "first", "second", "pair_weight", "pair_first", "pair_second", "missing", "minimum", "maximum")
MISSING, MINIMUM, MAXIMUM = (ROWS.index(name) for name in ("missing", "minimum", "maximum"))


def no_sums(channels: int) -> Float[np.ndarray, "row channel"]:
    """The sums over no fields."""
    sums = np.zeros((len(ROWS), channels))
    sums[MINIMUM], sums[MAXIMUM] = np.inf, -np.inf
    return sums


def add_sums(
    a: Float[np.ndarray, "row channel"], b: Float[np.ndarray, "row channel"]
) -> Float[np.ndarray, "row channel"]:
    """The sums over both; adding in the same order gives the same bits."""
    total = a + b
    total[MINIMUM] = np.minimum(a[MINIMUM], b[MINIMUM])
    total[MAXIMUM] = np.maximum(a[MAXIMUM], b[MAXIMUM])
    return total


def measure(
    fields: Float[np.ndarray, "channel lat lon"],
    earlier: Float[np.ndarray, "channel lat lon"] | None,  # by 6 h; None where they are not there or do not count
    *,
    shift: Float[np.ndarray, " channel"],  # values near the channels' means
    row_weights: Float[np.ndarray, " lat"],
) -> Float[np.ndarray, "row channel"]:
    """The sums over one time, or over some of its rows."""
    sums = no_sums(len(fields))
    low, high = fields.min(axis=(1, 2)), fields.max(axis=(1, 2))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        finite = np.isfinite(fields)
        sums[MISSING] = (~finite).sum(axis=(1, 2))
        low = np.where(finite, fields, np.inf).min(axis=(1, 2))
        high = np.where(finite, fields, -np.inf).max(axis=(1, 2))
    sums[MINIMUM], sums[MAXIMUM] = low, high
    sums[:3] = _moments(fields, shift, row_weights)
    if earlier is not None:
        with np.errstate(invalid="ignore"):  # infinity minus infinity is counted as missing
            change = fields - earlier
        sums[3:6] = _moments(change, None, row_weights)
    return sums


def _moments(values: np.ndarray, shift: np.ndarray | None, row_weights: np.ndarray) -> np.ndarray:
    """(sum w, sum w d, sum w d^2) per channel, of the values that are finite."""
    deviation = values.astype(np.float64)
    if shift is not None:
        deviation -= shift[:, None, None]
    with np.errstate(invalid="ignore"):
        first = _total(deviation, row_weights)
    weight = np.full(len(values), row_weights.sum() * values.shape[-1])
    if not np.isfinite(first).all():
        finite = np.isfinite(values)
        deviation = np.where(finite, deviation, 0.0)
        first, weight = _total(deviation, row_weights), _total(finite, row_weights)
    return np.stack([weight, first, _total(np.square(deviation, out=deviation), row_weights)])


def _total(values: np.ndarray, row_weights: np.ndarray) -> np.ndarray:
    return (values.sum(axis=-1) * row_weights).sum(axis=-1)


def make_statistics(sums: Float[np.ndarray, "row channel"], shift: Float[np.ndarray, " channel"]) -> Statistics:
    """Mean, standard deviation, the tendency's standard deviation, range and count of missing values, per channel.

    The tendency's is NaN where no two times lie that far apart, all are NaN where a channel has no value.
    """
    weight, first, second, pairs, pair_first, pair_second, missing, minimum, maximum = sums
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        mean, pair_mean = first / weight, pair_first / pairs
        std = np.sqrt(np.maximum(second - first * mean, 0) / weight)
        tendency_std = np.sqrt(np.maximum(pair_second - pair_first * pair_mean, 0) / pairs)
    return Statistics(
        mean=shift + mean,
        std=std,
        tendency_std=tendency_std,
        minimum=np.where(weight > 0, minimum, np.nan),
        maximum=np.where(weight > 0, maximum, np.nan),
        missing=missing.astype(np.int64),
    )


def measure_sample(source: Source, dtype: str, workers: Workers) -> tuple[dict[str, Any], list[str]]:
    """Chooses scale and offset from a sample, and measures what storage would cost in each type; and finds faults."""
    times = spread(np.arange(len(source.times)), SAMPLE_TIMES)
    samples = (source.narrow(times, variables=[variable]) for variable in source.variables)
    found = list(workers.map(functools.partial(_measure_variable, dtype=dtype), samples))
    scale, offset, shift, *rounding = np.concatenate([rows for rows, _ in found], axis=1).tolist()
    rounding = dict(zip(DTYPES, rounding, strict=True))
    sampled = [str(time) for time in source.times[times]]
    measured = {"sampled": sampled, "scale": scale, "offset": offset, "shift": shift, "rounding": rounding}
    return measured, [fault for _, faults in found for fault in faults]


def _measure_variable(source: Source, dtype: str) -> tuple[Float[np.ndarray, "row channel"], list[str]]:
    """(scale, offset, shift, rounding error in each of DTYPES) per channel of one variable; and its impossible values.

    Frames are thinned on the grid where they would take too much memory. shift is near the mean, whatever the type.
    """
    lat, lon = source.grid.shape
    count = len(source.times)
    thin = int(np.ceil(np.sqrt(count * len(source.channels) * lat * lon * 4 / SAMPLE_BYTES)))
    sample = np.concatenate([source.read([n])[..., ::thin, ::thin] for n in range(count)])
    faults, ones = [], {"shift": np.zeros(sample.shape[1]), "row_weights": np.ones(sample.shape[2])}
    for n, fields in enumerate(sample):
        when = source.times[n].astype("datetime64[m]")
        for channel, fault in _find_impossible(fields, source.channels, measure(fields, None, **ones)).items():
            faults.append(f"{source.channels[channel].name} at {when}: {fault}")
    _, shift = choose_packing(sample, "float16")
    rows = [*choose_packing(sample, dtype), shift, *(rounding_error(sample, name) for name in DTYPES)]
    return np.stack(rows), faults


def check_fields(
    fields: Float[np.ndarray, "channel lat lon"],
    time: np.datetime64,
    channels: Sequence[Channel],
    sums: Float[np.ndarray, "row channel"],
    *,
    masks: Bool[np.ndarray, "channel lat lon"] | None = None,
    before: Float[np.ndarray, "channel lat lon"] | None = None,
) -> tuple[list[str], Bool[np.ndarray, " channel"]]:
    """(faults, where other points are missing than `masks`) of the channels of a variable at one time.

    A fault names a channel that holds missing, infinite or impossible values, or nothing but equal ones, with counts.
    `sums` are theirs. Points that are missing at the archive's first time, `masks`, are no fault where they, and they
    alone, are missing: such as land where the sea's surface is meant. `before` are the fields a short time before, to
    which none may lie upside down.
    """
    missing, minimum, maximum = sums[[MISSING, MINIMUM, MAXIMUM]]
    odd = _find_impossible(fields, channels, sums)
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


def _find_impossible(
    fields: Float[np.ndarray, "channel lat lon"], channels: Sequence[Channel], sums: Float[np.ndarray, "row channel"]
) -> dict[int, str]:
    """Channels with values out of the range of what there is on Earth, or with marks of missing values: how many."""
    minimum, maximum = sums[[MINIMUM, MAXIMUM]]
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
