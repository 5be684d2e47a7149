"""Statistics gathered in parts equal those that float64 numpy computes of everything at once."""

import numpy as np
import pytest

from weathermixer.fields.grid import area_weights
from weathermixer.prepare.statistics import add_sums, make_statistics, measure, no_sums

# a channel as geopotential at 50 hPa (mean far above its deviations), one as specific humidity there, one of order one
MEAN, STD = np.array([2e5, 3e-6, 0.0]), np.array([400.0, 4e-7, 1.0])


def frames(count: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(count, 3, 6, 8))
    return (MEAN[:, None, None] + STD[:, None, None] * noise).astype(np.float32)


def gather(x: np.ndarray, *, shift=MEAN, counted=None, paired=None, row_weights=None, rows=6):
    """Statistics of x, some rows of a field at a time; each frame's earlier one is the frame before it."""
    counted = np.ones(len(x), bool) if counted is None else counted
    paired = np.arange(len(x)) > 0 if paired is None else paired
    row_weights = np.ones(6) if row_weights is None else row_weights
    shift = np.asarray(shift, np.float64)
    sums = no_sums(3)
    for time in np.flatnonzero(counted):
        for start in range(0, 6, rows):
            some = slice(start, start + rows)
            earlier = x[time - 1, :, some] if paired[time] else None
            found = measure(x[time, :, some], earlier, shift=shift, row_weights=row_weights[some])
            sums = add_sums(sums, found)
    return make_statistics(sums, shift)


@pytest.mark.parametrize("rows", [6, 4, 1])
def test_parts_give_the_whole(rows):
    x = frames(40)
    statistics = gather(x, rows=rows)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(statistics.mean, exact.mean(axis=(0, 2, 3)), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(statistics.std, exact.std(axis=(0, 2, 3)), rtol=1e-7)
    np.testing.assert_allclose(statistics.tendency_std, np.diff(exact, axis=0).std(axis=(0, 2, 3)), rtol=1e-7)
    np.testing.assert_array_equal(statistics.minimum, exact.min(axis=(0, 2, 3)))
    np.testing.assert_array_equal(statistics.maximum, exact.max(axis=(0, 2, 3)))
    np.testing.assert_array_equal(statistics.missing, [0, 0, 0])


def test_a_shift_some_deviations_off_does_no_harm():
    x = frames(40)
    statistics = gather(x, shift=MEAN + 3 * STD)
    np.testing.assert_allclose(statistics.std, x.astype(np.float64).std(axis=(0, 2, 3)), rtol=1e-6)


def test_weights_of_area():
    x, weights = frames(10), area_weights(np.array([75.0, 45, 15, -15, -45, -75]))
    statistics = gather(x, row_weights=weights, rows=4)
    exact = x.astype(np.float64)
    full = np.broadcast_to(weights[:, None], (10, 6, 8))
    for channel in range(3):
        mean = np.average(exact[:, channel], weights=full)
        assert statistics.mean[channel] == pytest.approx(mean, rel=1e-9, abs=1e-9)
        variance = np.average((exact[:, channel] - mean) ** 2, weights=full)
        assert statistics.std[channel] == pytest.approx(np.sqrt(variance), rel=1e-6)


def test_values_that_are_not_finite_are_left_out_and_counted():
    x = frames(12)
    x[2, 0, 1, 1], x[5, 1, :, 2], x[:, 2, 3] = np.nan, np.inf, -np.inf
    statistics = gather(x, rows=4)
    np.testing.assert_array_equal(statistics.missing, [1, 6, 96])
    for channel in range(3):
        finite = x[:, channel][np.isfinite(x[:, channel])].astype(np.float64)
        assert statistics.mean[channel] == pytest.approx(finite.mean(), rel=1e-9, abs=1e-9)
        assert statistics.std[channel] == pytest.approx(finite.std(), rel=1e-6)
        assert (statistics.minimum[channel], statistics.maximum[channel]) == (finite.min(), finite.max())
    with np.errstate(invalid="ignore"):
        difference = np.diff(x[:, 0].astype(np.float64), axis=0)
    assert statistics.tendency_std[0] == pytest.approx(np.nanstd(difference), rel=1e-6)


def test_a_channel_without_any_value():
    x = frames(3)
    x[:, 1] = np.nan
    statistics = gather(x)
    assert np.isnan(statistics.mean[1])
    assert np.isnan(statistics.std[1])
    assert np.isnan(statistics.minimum[1])
    assert np.all(np.isfinite(statistics.mean[[0, 2]]))


def test_only_counted_times_and_pairs():
    x = frames(10)
    counted, paired = np.arange(10) < 6, np.isin(np.arange(10), [1, 2, 5])
    statistics = gather(x, counted=counted, paired=paired)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(statistics.std, exact[:6].std(axis=(0, 2, 3)), rtol=1e-6)
    pairs = exact[[1, 2, 5]] - exact[[0, 1, 4]]
    np.testing.assert_allclose(statistics.tendency_std, pairs.std(axis=(0, 2, 3)), rtol=1e-6)
    alone = gather(x[:1])
    assert np.all(np.isnan(alone.tendency_std))
