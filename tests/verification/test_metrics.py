"""Scores against WeatherBench 2's formulae, written out in float64 numpy and xarray."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from weathermixer.fields.grid import area_weights
from weathermixer.parallel.mesh import make_mesh, sharding, use_mesh
from weathermixer.verification.metrics import METRICS, STATISTICS, area_mean, field_statistics

SHAPE = (6, 4, 8, 10)
LATITUDE = np.linspace(78.75, -78.75, SHAPE[2])
SCALE = np.array([3.0, 0.5, 1000.0, 1.0])


def make_fields(seed=0):
    """Standardized prediction, target and climatology; a bias and an error in the prediction."""
    normal = np.random.default_rng(seed).normal
    climatology = normal(size=SHAPE)
    target = climatology + normal(size=SHAPE)
    return (target + 0.3 * normal(size=SHAPE) + 0.1), target, climatology


def weatherbench2(prediction, target, climatology):
    """RMSE, bias and ACC [channel] as weatherbench2.metrics computes them: means over space, then over time."""
    dims, coords = ("time", "channel", "latitude", "longitude"), {"latitude": LATITUDE[::-1]}
    forecast, truth, normal = (
        xr.DataArray(SCALE[:, None, None] * x[:, :, ::-1], coords, dims) for x in (prediction, target, climatology)
    )
    points = np.deg2rad(forecast.latitude.data)  # ascending
    bounds = np.concatenate([[-np.pi / 2], (points[:-1] + points[1:]) / 2, [np.pi / 2]])
    weights = np.sin(bounds[1:]) - np.sin(bounds[:-1])
    weights = forecast.latitude.copy(data=weights / np.mean(weights))

    def spatial_average(x):
        return x.weighted(weights).mean(["latitude", "longitude"])

    f, t = forecast - normal, truth - normal
    acc = spatial_average(f * t) / np.sqrt(spatial_average(f**2) * spatial_average(t**2))
    return {
        "rmse": np.sqrt(spatial_average((forecast - truth) ** 2).mean("time")).data,
        "bias": spatial_average(forecast - truth).mean("time").data,
        "acc": acc.mean("time").data,
    }


def scores(prediction, target, climatology, mesh):
    cut = sharding(mesh, "batch", "channel", "lat", "lon")
    with use_mesh(mesh):
        fields = [jax.device_put(x.astype(np.float32), cut) for x in (prediction, target, climatology)]
        scale = jax.device_put(SCALE.astype(np.float32), sharding(mesh, "channel"))
        statistics = jax.jit(field_statistics)(*fields, area=area_weights(LATITUDE), scale=scale)
    assert set(statistics) == set(STATISTICS)
    means = {name: np.asarray(x, np.float64).mean(axis=0) for name, x in statistics.items()}
    return {name: metric(means) for name, metric in METRICS.items()}


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2), (1, 8, 1), (2, 1, 4)])
def test_scores_are_weatherbench2s_on_any_mesh(shape):
    fields = make_fields()
    expected = weatherbench2(*fields)
    for name, value in scores(*fields, make_mesh(*shape)).items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-6, err_msg=name)


def test_the_root_is_taken_after_the_mean_over_time():
    prediction, target, climatology = make_fields()
    prediction = target.copy()
    prediction[0] += 2.0  # one bad time in six: sqrt(4 / 6), where a root before the mean would give 2 / 6
    np.testing.assert_allclose(
        scores(prediction, target, climatology, make_mesh(1, 1, 1))["rmse"], SCALE * np.sqrt(4 / 6), rtol=1e-6
    )


def test_a_perfect_forecast():
    _, target, climatology = make_fields()
    perfect = scores(target, target, climatology, make_mesh(1, 2, 2))
    np.testing.assert_array_equal(perfect["rmse"], 0)
    np.testing.assert_array_equal(perfect["bias"], 0)
    np.testing.assert_allclose(perfect["acc"], 1, rtol=1e-6)


def test_a_constant_offset_is_the_bias():
    _, _, climatology = make_fields()
    target = np.round(climatology)  # whole numbers, so that 0.5 more is exact in float32
    found = scores(target + 0.5, target, climatology, make_mesh(2, 2, 1))
    np.testing.assert_allclose(found["bias"], 0.5 * SCALE, rtol=1e-6)
    np.testing.assert_allclose(found["rmse"], 0.5 * SCALE, rtol=1e-6)


def test_opposite_anomalies_correlate_with_minus_one_and_climatology_with_nothing():
    _, target, climatology = make_fields()
    mesh = make_mesh(1, 1, 1)
    np.testing.assert_allclose(scores(2 * climatology - target, target, climatology, mesh)["acc"], -1, rtol=1e-5)
    assert np.isnan(scores(climatology, target, climatology, mesh)["acc"]).all()


def test_area_mean_of_one_is_one():
    # a wrong weight shows in a constant field only through its mean, so weigh a polar cap too
    ones = jnp.ones(SHAPE)
    area = area_weights(LATITUDE)
    np.testing.assert_allclose(area_mean(ones, area), 1, rtol=1e-6)
    cap = ones * (jnp.arange(SHAPE[2]) == 0)[None, None, :, None]
    np.testing.assert_allclose(area_mean(cap, area), (1 - np.sin(np.deg2rad(67.5))) / 2, rtol=1e-6)
