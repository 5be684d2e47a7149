"""Statistics of channels from sums over single fields, of deviations from a value near the mean, in float64.

    d = x - shift     mean = shift + sum w d / sum w     std^2 = (sum w d^2 - (sum w d)^2 / sum w) / sum w

A field's sums are the same wherever it is read and with whatever else, and they are added in the order of the times:
statistics do not depend on how many processes make an archive, nor on which of them makes what.
"""

import numpy as np
from jaxtyping import Float

from weathermixer.archive.archive import Statistics

# Rows of a table of sums: of the values that are finite, of their changes over 6 h, how many are not finite, the range
ROWS = ("weight", "first", "second", "pair_weight", "pair_first", "pair_second", "missing", "minimum", "maximum")
_MINIMUM, _MAXIMUM = ROWS.index("minimum"), ROWS.index("maximum")


def no_sums(channels: int) -> Float[np.ndarray, "row channel"]:
    """The sums over no fields."""
    sums = np.zeros((len(ROWS), channels))
    sums[_MINIMUM], sums[_MAXIMUM] = np.inf, -np.inf
    return sums


def add_sums(
    a: Float[np.ndarray, "row channel"], b: Float[np.ndarray, "row channel"]
) -> Float[np.ndarray, "row channel"]:
    """The sums over both; adding in the same order gives the same bits."""
    total = a + b
    total[_MINIMUM] = np.minimum(a[_MINIMUM], b[_MINIMUM])
    total[_MAXIMUM] = np.maximum(a[_MAXIMUM], b[_MAXIMUM])
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
        sums[ROWS.index("missing")] = (~finite).sum(axis=(1, 2))
        low = np.where(finite, fields, np.inf).min(axis=(1, 2))
        high = np.where(finite, fields, -np.inf).max(axis=(1, 2))
    sums[_MINIMUM], sums[_MAXIMUM] = low, high
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
    table = dict(zip(ROWS, sums))
    some = table["weight"] > 0

    def ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.divide(a, b, out=np.full(len(a), np.nan), where=b > 0)

    def std(weight: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.sqrt(ratio(np.maximum(second - first * np.nan_to_num(ratio(first, weight)), 0.0), weight))

    return Statistics(
        mean=shift + ratio(table["first"], table["weight"]),
        std=std(*sums[:3]),
        tendency_std=std(*sums[3:6]),
        minimum=np.where(some, table["minimum"], np.nan),
        maximum=np.where(some, table["maximum"], np.nan),
        missing=table["missing"].astype(np.int64),
    )
