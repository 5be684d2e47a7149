"""Statistics of channels in one pass over the frames: moments per shard, merged in order, stable for any length.

Deviations from a value near the mean are taken in float32, exact to their own rounding, and summed in float64; moments
are merged by Chan's formula, so nothing cancels (Chan, Golub and LeVeque 1983, The American Statistician 37).
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from weathermixer.archive.archive import Statistics


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Sum of weights, weighted mean and weighted sum of squared deviations, per channel, in float64."""

    weight: Float[np.ndarray, " channel"]
    mean: Float[np.ndarray, " channel"]
    squares: Float[np.ndarray, " channel"]

    @property
    def std(self) -> Float[np.ndarray, " channel"]:
        """sqrt(squares / weight), NaN where there is no value."""
        return np.sqrt(np.divide(self.squares, self.weight, out=np.full(len(self.mean), np.nan), where=self.weight > 0))


@dataclasses.dataclass(frozen=True, eq=False)
class Partial:
    """Statistics of some frames: moments of x(t) and of x(t + lag) - x(t), range, and count of values not finite."""

    state: Moments
    tendency: Moments
    minimum: Float[np.ndarray, " channel"]
    maximum: Float[np.ndarray, " channel"]
    missing: Int[np.ndarray, " channel"]


def no_moments(channels: int) -> Moments:
    """The moments of nothing."""
    return Moments(*(np.zeros(channels) for _ in range(3)))


def no_partial(channels: int) -> Partial:
    """The statistics of no frames."""
    empty = np.full(channels, np.inf)
    return Partial(no_moments(channels), no_moments(channels), empty, -empty, np.zeros(channels, np.int64))


def compute_moments(
    frames: Float[np.ndarray, "time channel lat lon"],
    shift: Float[np.ndarray, " channel"],
    row_weights: Float[np.ndarray, " lat"],
) -> Moments:
    """Moments per channel of the values that are finite, each weighted by its row.

        d = x - shift    weight = sum w    mean = shift + sum w d / weight    squares = sum w d^2 - (sum w d)^2 / weight

    `shift` has to lie near the mean, within some standard deviations.
    """
    time, _, _, lon = frames.shape
    shift = shift.astype(np.float32)
    deviation = frames - shift[:, None, None]
    rows = deviation.sum(axis=-1, dtype=np.float64)
    if np.all(np.isfinite(rows)):
        weight = np.full(len(shift), row_weights.sum() * lon * time)
    else:
        finite = np.isfinite(deviation)
        deviation = np.where(finite, deviation, np.float32(0))
        rows = deviation.sum(axis=-1, dtype=np.float64)
        weight = (finite.sum(axis=-1) * row_weights).sum(axis=(0, 2))
    first = (rows * row_weights).sum(axis=(0, 2))
    second = (np.square(deviation, out=deviation).sum(axis=-1, dtype=np.float64) * row_weights).sum(axis=(0, 2))
    mean = np.divide(first, weight, out=np.zeros_like(first), where=weight > 0)
    return Moments(weight, np.where(weight > 0, shift + mean, 0.0), np.maximum(second - mean * first, 0.0))


def merge_moments(a: Moments, b: Moments) -> Moments:
    """The moments of both together.

    delta = mean_b - mean_a     mean = mean_a + delta w_b / w     squares = squares_a + squares_b + delta^2 w_a w_b / w
    """
    weight = a.weight + b.weight
    share = np.divide(b.weight, weight, out=np.zeros_like(weight), where=weight > 0)
    delta = b.mean - a.mean
    return Moments(weight, a.mean + delta * share, a.squares + b.squares + delta**2 * a.weight * share)


def compute_partial(
    frames: Float[np.ndarray, "time channel lat lon"],
    earlier: Float[np.ndarray, "time channel lat lon"],
    *,
    counted: Bool[np.ndarray, " time"],
    paired: Bool[np.ndarray, " time"],
    shift: Float[np.ndarray, " channel"],
    row_weights: Float[np.ndarray, " lat"],
) -> Partial:
    """Statistics of a block of frames.

    Args:
      earlier: the frames `lag` times before those of `frames`.
      counted: frames that belong to the statistics' period.
      paired: frames whose earlier one lies the right number of hours before, and belongs to the period too.
      shift: a value near each channel's mean.
      row_weights: weight of each latitude row.
    """
    if not counted.any():
        return no_partial(len(shift))
    chosen = frames if counted.all() else frames[counted]
    state = compute_moments(chosen, shift, row_weights)
    minimum, maximum = chosen.min(axis=(0, 2, 3)), chosen.max(axis=(0, 2, 3))
    missing = np.zeros(len(shift), np.int64)
    if not (np.all(np.isfinite(minimum)) and np.all(np.isfinite(maximum))):
        finite = np.isfinite(chosen)
        missing = (~finite).sum(axis=(0, 2, 3))
        minimum = np.where(finite, chosen, np.inf).min(axis=(0, 2, 3))
        maximum = np.where(finite, chosen, -np.inf).max(axis=(0, 2, 3))
    tendency = no_moments(len(shift))
    if paired.any():
        with np.errstate(invalid="ignore"):  # infinity minus infinity is found above
            difference = frames[paired] - earlier[paired]
        tendency = compute_moments(difference, np.zeros(len(shift)), row_weights)
    return Partial(state, tendency, minimum.astype(np.float64), maximum.astype(np.float64), missing)


def merge_partials(a: Partial, b: Partial) -> Partial:
    """The statistics of both together; merging in the same order gives the same bits."""
    return Partial(
        merge_moments(a.state, b.state),
        merge_moments(a.tendency, b.tendency),
        np.minimum(a.minimum, b.minimum),
        np.maximum(a.maximum, b.maximum),
        a.missing + b.missing,
    )


def concatenate_partials(partials: list[Partial]) -> Partial:
    """Partials of different channels side by side."""

    def join(pick):
        return np.concatenate([pick(partial) for partial in partials])

    def moments(pick):
        names = [field.name for field in dataclasses.fields(Moments)]
        return Moments(*(join(lambda p, name=name: getattr(pick(p), name)) for name in names))

    state, tendency = moments(lambda p: p.state), moments(lambda p: p.tendency)
    return Partial(state, tendency, join(lambda p: p.minimum), join(lambda p: p.maximum), join(lambda p: p.missing))


def make_statistics(partial: Partial) -> Statistics:
    """Mean, standard deviation, the tendency's standard deviation, range and count of missing values, per channel.

    The tendency's is NaN where no two times lie that far apart, all are NaN where a channel has no value.
    """
    some = partial.state.weight > 0
    return Statistics(
        mean=np.where(some, partial.state.mean, np.nan),
        std=partial.state.std,
        tendency_std=partial.tendency.std,
        minimum=np.where(some, partial.minimum, np.nan),
        maximum=np.where(some, partial.maximum, np.nan),
        missing=partial.missing,
    )


def flatten_partial(partial: Partial) -> Float[np.ndarray, "row channel"]:
    """The partial as one float64 table, for the journal; counts are exact to 2^53."""
    state, tendency = (dataclasses.astuple(moments) for moments in (partial.state, partial.tendency))
    return np.stack([*state, *tendency, partial.minimum, partial.maximum, partial.missing.astype(np.float64)])


def unflatten_partial(table: Float[np.ndarray, "row channel"]) -> Partial:
    """What `flatten_partial` made a table of."""
    return Partial(Moments(*table[:3]), Moments(*table[3:6]), table[6], table[7], table[8].astype(np.int64))
