"""The tests say that a difference is real as often as they should, and are what others' formulae give."""

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import xarray as xr

from weathermixer.verification.metrics import compute_metrics
from weathermixer.verification.significance import compare, join_scores

HOURS = np.timedelta64(12, "h")


def make_scores(squared, *, sources=("a", "b"), missing=None, **more):
    """Statistics [source, time] of one channel and lead."""
    times = np.datetime64("2020-01-01", "ns") + np.arange(squared.shape[1]) * HOURS
    counted = np.ones(squared.shape[1], bool) if missing is None else ~missing
    dims = ("source", "time", "lead_hours", "channel")
    arrays = {name: (dims, x[..., None, None]) for name, x in {"squared_error": squared, **more}.items()}
    arrays["counted"] = (dims[1:], counted[:, None, None])
    return xr.Dataset(arrays, {"source": list(sources), "time": times, "lead_hours": [24], "channel": ["z"]})


def correlated(count, phi, *, series, seed=0):
    """AR(1) series [series, count] of mean zero."""
    noise = np.random.default_rng(seed).normal(size=(series, count + 200))
    return scipy.signal.lfilter([1], [1, -phi], noise)[:, 200:]


def weatherbench_x(a, b):
    """(standard error, p) of the difference of two RMSE, as t_test.GeerAR2Corrected with the delta method, in numpy."""
    rmse = [np.sqrt(x.mean()) for x in (a, b)]
    d = (a - a.mean()) / (2 * rmse[0]) - (b - b.mean()) / (2 * rmse[1])
    variance = (d**2).sum() / (len(d) - 1)
    r1, r2 = ((d[lag:] * d[:-lag]).mean() / variance for lag in (1, 2))
    phi1, phi2 = r1 * (1 - r2) / (1 - r1**2), (r2 - r1**2) / (1 - r1**2)
    k = np.sqrt((1 - r1 * phi1 - r2 * phi2) / (1 - phi1 - phi2) ** 2)
    error = np.sqrt(variance / len(d)) * k
    return error, 2 * scipy.stats.t.sf(abs(rmse[0] - rmse[1]) / error, len(d) - 1)


def test_the_t_test_is_weatherbench_xs():
    series = 4 + np.abs(correlated(200, 0.6, series=2))
    found = compare(make_scores(series), "a", "b").squeeze()
    error, p = weatherbench_x(*series)
    np.testing.assert_allclose(found.standard_error, error, rtol=1e-9)
    np.testing.assert_allclose(found.p_value, p, rtol=1e-9)
    half = error * scipy.stats.t.ppf(0.975, 199)
    np.testing.assert_allclose(
        [found.t_low, found.t_high], found.difference.item() + np.array([-half, half]), rtol=1e-9
    )
    assert abs(found.difference - (np.sqrt(series[0].mean()) - np.sqrt(series[1].mean()))) < 1e-12


def test_starts_need_not_be_evenly_spaced():
    """Every 12 or 18 h, as evenly as a period allows: all of them count."""
    series = 4 + np.abs(correlated(200, 0.6, series=2))
    scores = make_scores(series)
    uneven = scores.assign_coords(time=scores.time + np.arange(200) // 2 * np.timedelta64(6, "h"))
    even = compare(scores, "a", "b").squeeze()
    np.testing.assert_allclose(compare(uneven, "a", "b").squeeze().p_value, even.p_value, rtol=1e-9)
    apart = scores.time + (np.arange(200) >= 100) * np.timedelta64(90, "D")  # no pair is across the gap
    error = compare(scores.assign_coords(time=apart), "a", "b").squeeze().standard_error
    assert 0.9 < error / even.standard_error < 1.1 and error != even.standard_error


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Of 300 pairs without a true difference 95 % of the intervals hold zero; plain ones of such errors far fewer."""
    count, trials, phi = 400, 300, 0.7
    a, b = (10 + correlated(count, phi, series=trials, seed=seed) for seed in (1, 2))
    table = make_scores(np.zeros((2, count)))
    values = np.stack([a, b])[:, :, :].transpose(0, 2, 1)[:, :, None]
    table = table.isel(channel=np.zeros(trials, int)).assign_coords(channel=np.arange(trials).astype(str))
    table = table.assign(squared_error=(table.squared_error.dims, values))
    found = compare(table, "a", "b").squeeze()
    plain = scipy.stats.ttest_rel(np.sqrt(a), np.sqrt(b), axis=1).pvalue
    assert (plain > 0.05).mean() < 0.75
    assert 0.9 < (found.p_value > 0.05).mean() <= 0.99
    assert 0.88 < ((found.low < 0) & (found.high > 0)).mean() <= 0.99


def test_a_metric_of_several_means_is_linearized():
    """Against the jackknife, of independent samples."""
    random = np.random.default_rng(0)
    names = ("anomaly_covariance", "squared_anomaly", "squared_target_anomaly")
    parts = {name: 5 + random.normal(size=(2, 150)) for name in names}
    parts["anomaly_covariance"] = parts["anomaly_covariance"] - 1
    scores = make_scores(np.ones((2, 150)), **parts)
    found = compare(scores, "a", "b", metric="acc_pooled").squeeze()
    whole = [compute_metrics(scores.isel(time=np.arange(150) != n)).acc_pooled.squeeze() for n in range(150)]
    left = np.array([x[0].item() - x[1].item() for x in whole])
    np.testing.assert_allclose(found.standard_error, np.sqrt(149 / 150 * ((left - left.mean()) ** 2).sum()), rtol=0.15)
    assert found.low < found.difference < found.high and found.t_low < found.difference < found.t_high


def test_what_does_not_count_does_not_enter():
    series = 4 + np.abs(correlated(120, 0.3, series=2))
    missing = np.arange(120) >= 100
    spoilt = series.copy()
    spoilt[:, 100:] = np.nan
    found, expected = (
        compare(make_scores(spoilt, missing=missing), "a", "b"),
        compare(make_scores(series[:, :100]), "a", "b"),
    )
    np.testing.assert_allclose(found.standard_error, expected.standard_error)
    np.testing.assert_allclose(found.p_value, expected.p_value)
    np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high])


def test_too_few_starts_have_no_interval_and_equal_forecasts_no_difference():
    few = compare(make_scores(1 + np.random.default_rng(0).random((2, 5))), "a", "b")
    assert np.isnan(few.low.item()) and np.isnan(few.high.item())
    same = compare(make_scores(np.repeat(1 + np.random.default_rng(0).random((1, 50)), 2, axis=0)), "a", "b")
    assert same.p_value.item() == 1 and same.difference.item() == 0


def test_scores_of_two_runs_are_joined_at_the_starts_of_both():
    one, other = (make_scores(np.full((1, 10), float(n + 1)), sources=["model"]) for n in range(2))
    joined = join_scores({"old": one, "new": other.isel(time=slice(3, None))})
    assert joined.source.values.tolist() == ["old", "new"] and joined.sizes["time"] == 7 and joined.samples.item() == 7
    by_region = {
        name: part.expand_dims(region=["global", "europe"]) for name, part in {"old": one, "new": other}.items()
    }
    assert join_scores(by_region).samples.dims == ("lead_hours",)  # as evaluate's, whatever the regions
    np.testing.assert_allclose(compare(joined, "new", "old").difference, np.sqrt(2) - 1)
    with pytest.raises(ValueError, match="old, new have no starts, leads and channels in common"):
        join_scores({"old": one, "new": other.assign_coords(channel=["t"])})
