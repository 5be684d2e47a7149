"""Statistics of channels: of a sample, for the packing, and from sums over all fields, of deviations in float64.

    d = x - shift     mean = shift + sum w d / sum w     std^2 = (sum w d^2 - (sum w d)^2 / sum w) / sum w

A field's sums are the same wherever it is read and with whatever else, and they are added in the order of the times:
statistics do not depend on how many processes make an archive, nor on which of them makes what.
"""

import functools
from typing import Any

import numpy as np
from jaxtyping import Float

from weathermixer.archive.archive import Statistics
from weathermixer.archive.layout import DTYPES, choose_packing, rounding_error
from weathermixer.prepare.checks import find_impossible
from weathermixer.prepare.workers import Workers
from weathermixer.sources.sources import Source

SAMPLE_TIMES = 16  # evenly over the record, from which scale and offset are chosen
SAMPLE_BYTES = 4 * 2**20  # of one variable

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
    earlier: Float[np.ndarray, "channel lat lon"] | None,
    *,
    shift: Float[np.ndarray, " channel"],
    row_weights: Float[np.ndarray, " lat"],
) -> Float[np.ndarray, "row channel"]:
    """The sums over one time, or over some of its rows.

    Args:
      earlier: the fields 6 h earlier; None where they are not there or do not count.
      shift: a value near each channel's mean.
      row_weights: weight of each latitude row.
    """
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
    times = np.unique(np.linspace(0, len(source.times) - 1, SAMPLE_TIMES).round().astype(int))
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
        low, high = measure(fields, None, **ones)[[MINIMUM, MAXIMUM]]
        when = source.times[n].astype("datetime64[m]")
        for channel, fault in find_impossible(fields, source.channels, low, high).items():
            faults.append(f"{source.channels[channel].name} at {when}: {fault}")
    _, shift = choose_packing(sample, "float16")
    rows = [*choose_packing(sample, dtype), shift, *(rounding_error(sample, name) for name in DTYPES)]
    return np.stack(rows), faults
