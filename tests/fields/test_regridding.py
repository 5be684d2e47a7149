"""Regridding gives known functions back on another grid, keeps means, and says what is missing."""

import sys

import numpy as np
import pytest

from tests.archives import make_grid
from weathermixer.fields.grid import Grid, area_weights, conservative_weights, equiangular_grid, regrid

FINE = Grid(np.linspace(90, -90, 37), np.arange(72) * 5.0)


def waves(grid):
    """[2, lat, lon] two smooth functions on the sphere."""
    lat, lon = np.deg2rad(grid.latitude)[:, None], np.deg2rad(grid.longitude)
    return np.stack([np.sin(lat) + 0 * lon, np.cos(lat) * np.sin(lon)]).astype(np.float32)


@pytest.mark.parametrize(
    ("method", "error"), [("linear", 2e-3), ("conservative", 5e-2), ("nearest", 6e-2), ("cubic", 1e-4)]
)
def test_smooth_functions_come_back(method, error):
    """Conservative gives means of cells, here of 11 degrees, which are not the values at their middle."""
    target = make_grid(16, 32)
    found = regrid(waves(FINE), FINE, target, method=method)
    assert found.shape == (2, 16, 32) and found.dtype == np.float32
    np.testing.assert_allclose(found, waves(target), atol=error)


def test_conservative_keeps_the_mean_and_linear_reaches_the_poles():
    target = make_grid(12, 24)
    noise = 5 + np.random.default_rng(0).normal(size=(1, 37, 72)).astype(np.float32)
    means = [
        np.mean(area_weights(grid.latitude)[:, None] * field)
        for grid, field in ((FINE, noise), (target, regrid(noise, FINE, target, method="conservative")))
    ]
    np.testing.assert_allclose(*means, rtol=1e-4)
    assert np.isfinite(regrid(waves(target), target, FINE, method="linear")).all()


def test_what_cannot_be_done_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"regrid='magic' is not one of \('linear'"):
        regrid(waves(FINE), FINE, FINE, method="magic")
    monkeypatch.setitem(sys.modules, "xarray_regrid", None)
    with pytest.raises(ValueError, match=r"needs xarray-regrid .*pip install 'weathermixer\[regrid\]'"):
        regrid(waves(FINE), FINE, FINE, method="linear")


def shares(target, grid):
    """Conservative weights [lat, lon, from_lat, from_lon] as the areas that cells have in common, one by one."""

    def bounds(latitude):
        return np.sin(np.deg2rad([90, *(latitude[1:] + latitude[:-1]) / 2, -90]))

    weights = np.zeros((*target.shape, *grid.shape))
    to, of = bounds(target.latitude), bounds(grid.latitude)
    dx, dy = 360 / target.shape[1], 360 / grid.shape[1]
    for i, j, k, m in np.ndindex(weights.shape):
        height = min(to[i], of[k]) - max(to[i + 1], of[k + 1])
        apart = (grid.longitude[m] - target.longitude[j] + 180) % 360 - 180
        width = min(dx / 2, apart + dy / 2) - max(-dx / 2, apart - dy / 2)
        weights[i, j, k, m] = max(height, 0) * max(width, 0)
    return weights / weights.sum((2, 3), keepdims=True)


@pytest.mark.parametrize(("of", "to"), [((9, 16), (4, 8)), ((12, 24), (7, 12)), ((6, 10), (5, 9))])
def test_conservative_weights_are_shares_of_area(of, to):
    grid, target = equiangular_grid(*of), equiangular_grid(*to)
    rows, columns = conservative_weights(grid, target)
    np.testing.assert_allclose(np.einsum("ik,jm->ijkm", rows, columns), shares(target, grid), atol=1e-12)
    field = np.random.default_rng(0).normal(size=grid.shape)
    means = [
        (area_weights(g.latitude)[:, None] * f).mean() for g, f in ((grid, field), (target, rows @ field @ columns.T))
    ]
    np.testing.assert_allclose(*means, atol=1e-12)


def test_conservative_weights_do_as_xarray_regrid():
    """From 1.5 to 5.625 degrees, WeatherBench 2's grids; xarray-regrid's weights of latitudes are not those of area."""
    grid, target = equiangular_grid(121, 240), equiangular_grid(32, 64)
    assert target.latitude[0] == 87.1875 and grid.latitude[0] == 90 and target.longitude[1] == 5.625
    field = np.cos(np.deg2rad(grid.latitude))[:, None] * np.sin(np.deg2rad(3 * grid.longitude)) + 2
    rows, columns = conservative_weights(grid, target)
    np.testing.assert_allclose(rows @ field @ columns.T, regrid(field, grid, target, method="conservative"), atol=2e-3)
