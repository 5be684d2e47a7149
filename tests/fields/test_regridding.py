"""Regridding gives known functions back on another grid, keeps means, and says what is missing."""

import sys

import numpy as np
import pytest

from tests.archives import make_grid
from weathermixer.fields.grid import Grid, area_weights
from weathermixer.fields.regridding import regrid

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
