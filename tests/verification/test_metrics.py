"""Scores against WeatherBench 2's and WeatherBench-X's formulae, written out in float64 numpy and xarray."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import xarray as xr

from tests.archives import make_grid
from weathermixer.parallel.mesh import make_mesh, sharding, use_mesh
from weathermixer.verification.metrics import METRICS, compute_metrics
from weathermixer.verification.regions import region_weights
from weathermixer.verification.statistics import Regions, ensemble_statistics, field_statistics, zonal_power

SHAPE = (6, 4, 8, 10)
GRID = make_grid(*SHAPE[2:])
SCALE = np.array([3.0, 0.5, 1000.0, 1.0])
REGIONS = ["global", "tropics", "alps=20:80:-40:40"]
CUT = ("batch", "channel", "lat", "lon")


def make_fields(seed=0):
    """Standardized prediction, target and climatology; a bias and an error in the prediction."""
    normal = np.random.default_rng(seed).normal
    climatology = normal(size=SHAPE)
    target = climatology + normal(size=SHAPE)
    return (target + 0.3 * normal(size=SHAPE) + 0.1), target, climatology


def to_xarray(fields):
    """In physical units with latitudes ascending, as weatherbench2.metrics wants them."""
    dims = ("number", "time", "channel", "latitude", "longitude")[5 - fields.ndim :]
    coords = {"latitude": GRID.latitude[::-1], "longitude": GRID.longitude}
    return xr.DataArray(SCALE[:, None, None] * fields[..., ::-1, :], coords, dims)


def spatial_average(x, region):
    """As weatherbench2.metrics: weights of the whole globe, then the region's slices."""
    points = np.deg2rad(x.latitude.data)
    bounds = np.concatenate([[-np.pi / 2], (points[:-1] + points[1:]) / 2, [np.pi / 2]])
    weights = x.latitude.copy(data=np.sin(bounds[1:]) - np.sin(bounds[:-1]))
    if region == "tropics":
        x = x.sel(latitude=slice(-20, 20))
    if region.startswith("alps"):
        x = xr.concat(
            [x.sel(latitude=slice(20, 80), longitude=s) for s in (slice(320, 360), slice(0, 40))], "longitude"
        )
    return x.weighted(weights).mean(["latitude", "longitude"])


def weatherbench(prediction, target, climatology, region):
    """Scores [channel] as WeatherBench 2 computes them, means over space, then over time; acc_pooled as WB-X."""
    forecast, truth, normal = map(to_xarray, (prediction, target, climatology))
    mean = lambda x: spatial_average(x, region)  # noqa: E731
    f, t = forecast - normal, truth - normal
    covariance, own, of_target = (mean(x).mean("time") for x in (f * t, f**2, t**2))
    return {
        "rmse": np.sqrt(mean((forecast - truth) ** 2).mean("time")).data,
        "bias": mean(forecast - truth).mean("time").data,
        "mae": mean(abs(forecast - truth)).mean("time").data,
        "acc": (mean(f * t) / np.sqrt(mean(f**2) * mean(t**2))).mean("time").data,
        "acc_pooled": (covariance / (np.sqrt(own) * np.sqrt(of_target))).data,
        "activity": np.sqrt(own).data,
        "activity_ratio": np.sqrt(own / of_target).data,
    }


def weatherbench_ensemble(members, target, region):
    """Statistics [time, channel] of ensembles as WeatherBench 2 computes them."""
    x, y = to_xarray(members), to_xarray(target)
    mean = lambda field: spatial_average(field, region)  # noqa: E731
    count, variance = len(members), x.var("number", ddof=1)
    pairs = sum(abs(x - x.isel(number=n)) for n in range(count)).sum("number") / (count * (count - 1))
    return {
        "crps_skill": mean(abs(x - y).mean("number")),
        "crps_spread": mean(pairs),
        "variance": mean(variance),
        "mean_squared_error_unbiased": mean((x.mean("number") - y) ** 2 - variance / count),
        "energy_skill": np.sqrt(mean((x - y) ** 2)).mean("number"),
        "energy_spread": np.sqrt(mean(x.diff("number") ** 2)).mean("number"),
    }


def statistics_of(function, mesh, *fields):
    with use_mesh(mesh):
        cuts = [sharding(mesh, *(None,) * (x.ndim - 4), *CUT) for x in fields]
        fields = [jax.device_put(x.astype(np.float32), cut) for x, cut in zip(fields, cuts)]
        scale = jax.device_put(SCALE.astype(np.float32), sharding(mesh, "channel"))
        weights = region_weights(GRID, REGIONS).astype(np.float32)
        weights = jax.device_put(weights, sharding(mesh, None, "lat", None))
        return jax.device_get(jax.jit(function)(*fields, over=Regions(weights), scale=scale))


def scores(found):
    """Metrics [channel, region] of the statistics of all samples."""
    arrays = {name: (("time", "channel", "region"), x) for name, x in found.items() if x.ndim == 3}
    counted = np.ones(next(iter(arrays.values()))[1].shape, bool)
    return compute_metrics(xr.Dataset(arrays | {"counted": (("time", "channel", "region"), counted)}))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2), (1, 8, 1), (2, 1, 4)])
def test_scores_are_weatherbench2s_on_any_mesh(shape):
    fields = make_fields()
    found = scores(statistics_of(field_statistics, make_mesh(*shape), *fields))
    for index, region in enumerate(REGIONS):
        expected = weatherbench(*fields, region)
        assert set(expected) == set(found)
        for name, value in found.isel(region=index).items():
            np.testing.assert_allclose(value, expected[name], rtol=4e-6, atol=1e-6, err_msg=f"{name} {region}")


def test_the_root_is_taken_after_the_mean_over_time():
    prediction, target, climatology = make_fields()
    prediction = target.copy()
    prediction[0] += 2.0  # one bad time in six: sqrt(4 / 6), where a root before the mean would give 2 / 6
    found = scores(statistics_of(field_statistics, make_mesh(1, 1, 1), prediction, target, climatology))
    np.testing.assert_allclose(found.rmse[:, 0], SCALE * np.sqrt(4 / 6), rtol=1e-6)


def test_perfect_opposite_and_climatological_forecasts():
    _, target, climatology = make_fields()
    mesh = make_mesh(1, 2, 2)
    perfect = scores(statistics_of(field_statistics, mesh, target, target, climatology))
    np.testing.assert_array_equal(perfect.rmse, 0)
    np.testing.assert_allclose([perfect.acc, perfect.acc_pooled, perfect.activity_ratio], 1, rtol=1e-6)
    opposite = scores(statistics_of(field_statistics, mesh, 2 * climatology - target, target, climatology))
    np.testing.assert_allclose(opposite.acc, -1, rtol=1e-5)
    assert np.isnan(scores(statistics_of(field_statistics, mesh, climatology, target, climatology)).acc).all()
    without = scores(statistics_of(lambda p, t, **o: field_statistics(p, t, None, **o), mesh, target, target))
    assert set(without) == {"rmse", "bias", "mae"}


def test_a_constant_offset_is_the_bias():
    _, _, climatology = make_fields()
    target = np.round(climatology)  # whole numbers, so that 0.5 more is exact in float32
    found = scores(statistics_of(field_statistics, make_mesh(2, 2, 1), target + 0.5, target, climatology))
    for name in ("bias", "rmse", "mae"):
        np.testing.assert_allclose(found[name], np.repeat(0.5 * SCALE[:, None], 3, axis=1), rtol=1e-6)


def test_a_statistic_that_is_no_number_where_it_counts_makes_none_and_elsewhere_does_not():
    values, counted = np.array([1.0, np.nan, 3.0])[:, None], np.array([True, False, True])[:, None]
    table = xr.Dataset({"error": (("time", "channel"), values), "counted": (("time", "channel"), counted)})
    assert compute_metrics(table).bias.item() == 2
    assert np.isnan(compute_metrics(table.assign(counted=table.counted | True)).bias.item())


def test_groups_of_starts():
    times = np.datetime64("2020-01-31T00", "ns") + np.arange(400) * np.timedelta64(12, "h")
    error = np.random.default_rng(0).normal(size=(400, 1))
    table = xr.Dataset(
        {"error": (("time", "channel"), error), "counted": (("time", "channel"), error < 2)}, {"time": times}
    )
    chosen = (table.time.dt.month.isin([3, 4, 5]).values) & (error[:, 0] < 2)
    by_season, by_hour = (compute_metrics(table, by=by) for by in ("season", "hour"))
    np.testing.assert_allclose(by_season.bias.sel(season="MAM"), error[chosen].mean())
    np.testing.assert_allclose(by_hour.bias.sel(hour=12), error[1::2][error[1::2, 0] < 2].mean())
    with pytest.raises(ValueError, match="by='year' is not one of"):
        compute_metrics(table, by="year")


def test_region_mean_leaves_out_what_is_missing():
    field, missing = np.ones(SHAPE, np.float32), np.zeros(SHAPE, bool)
    field[..., 0] = 5.0
    missing[..., 0], missing[0, 0] = True, True
    with use_mesh(make_mesh(1, 1, 1)):
        weights = jnp.asarray(region_weights(GRID, REGIONS), jnp.float32)
        found = Regions(weights, jnp.asarray(missing)).mean(jnp.asarray(field))
    assert np.isnan(found[0, 0]).all()
    np.testing.assert_allclose(found[1:], 1, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_ensembles_are_scored_as_weatherbench_2_does(shape):
    _, target, _ = make_fields()
    members = target + np.random.default_rng(1).normal(size=(5, *SHAPE)) + 0.2
    found = statistics_of(ensemble_statistics, make_mesh(*shape), members, target)
    x, y = to_xarray(members), to_xarray(target)
    for index, region in enumerate(REGIONS):
        expected = weatherbench_ensemble(members, target, region)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][..., index], value, rtol=2e-5, atol=1e-6, err_msg=name)
    ranks = found["rank_histogram"]
    np.testing.assert_allclose(ranks.sum(axis=-1), 1, rtol=1e-5)
    expected = spatial_average(((x < y).sum("number") == 2).astype(float), "global")
    np.testing.assert_allclose(ranks[:, :, 0, 2], expected, rtol=1e-5, atol=1e-6)


def test_crps_of_many_members_of_a_gaussian_is_its_closed_form():
    """CRPS = s (z (2 F(z) - 1) + 2 f(z) - 1 / sqrt(pi)), z = (y - m) / s (Gneiting et al. 2005)."""
    shape, number = (1, 4, 8, 10), 1000
    mean, std, y = 0.3, 0.8, np.linspace(-2, 2, 320).reshape(shape)
    # equally likely quantiles in the place of random numbers, which would need a hundred times as many
    quantiles = scipy.stats.norm.ppf((np.arange(number) + 0.5) / number, mean, std)
    members = np.broadcast_to(quantiles[:, None, None, None, None], (number, *shape))
    found = scores(statistics_of(ensemble_statistics, make_mesh(1, 1, 1), members, y))
    z = (y - mean) / std
    form = std * (z * (2 * scipy.stats.norm.cdf(z) - 1) + 2 * scipy.stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
    expected = (region_weights(GRID, ["global"])[0] * form[0]).sum((1, 2)) * SCALE
    np.testing.assert_allclose(found.crps[:, 0], expected, rtol=4e-3)
    assert set(found) == {"crps", "spread", "spread_skill", "energy_score"} <= set(METRICS)


def test_ties_are_spread_over_their_ranks():
    members, target = np.zeros((3, 1, 4, 8, 10)), np.zeros((1, 4, 8, 10))
    found = statistics_of(ensemble_statistics, make_mesh(1, 1, 1), members, target)
    np.testing.assert_allclose(found["rank_histogram"], 0.25, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_spectra_are_weatherbench_2s(shape):
    field = make_fields()[0]
    bands = region_weights(GRID, ["tropics", "arctic"]).sum(axis=2)
    run = lambda x, over, scale: zonal_power(x, jnp.asarray(bands, jnp.float32), scale=scale)  # noqa: E731
    found = statistics_of(run, make_mesh(*shape), field)
    # S[k] = 2 C |F[k]|^2 (once for k = 0), F = 1/L sum f exp(-2 pi i k l / L); here without C, a circle's length
    power = np.abs(np.fft.rfft(SCALE[:, None, None] * field, norm="forward")) ** 2 * np.array([1, 2, 2, 2, 2, 2])
    np.testing.assert_allclose(found, np.einsum("bnik,ri->bnrk", power, bands), rtol=1e-4, atol=1e-6)


@pytest.mark.slow  # 10 s
def test_the_table_of_equality_with_weatherbench_2_is_what_the_pages_say():
    from tests.verification.weatherbench import table

    for name, count, most in table():
        assert count and most < (1e-12 if name.startswith("weights") else 2e-5), (name, most)
