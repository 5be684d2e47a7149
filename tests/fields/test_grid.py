"""Grids in canonical order, and weights that are areas."""

import numpy as np
import pytest

from weathermixer.fields.grid import Grid, area_weights, cosine_weights

LONGITUDE = np.arange(8) * 45.0


def test_area_weights_are_the_areas_of_cells_between_the_poles():
    latitude = np.linspace(90, -90, 7)  # with poles: half cells there
    bounds = np.deg2rad(np.array([90, 75, 45, 15, -15, -45, -75, -90]))
    areas = np.sin(bounds[:-1]) - np.sin(bounds[1:])
    np.testing.assert_allclose(area_weights(latitude), areas / areas.mean())
    np.testing.assert_allclose(area_weights(latitude[::-1]), areas[::-1] / areas.mean())
    assert area_weights(latitude).mean() == pytest.approx(1)


def test_cosine_weights_have_mean_one():
    latitude = np.array([60.0, 0.0, -60.0])
    np.testing.assert_allclose(cosine_weights(latitude), [0.75, 1.5, 0.75])


@pytest.mark.parametrize(
    ("latitude", "longitude", "message"),
    [
        ([-10.0, 10.0], LONGITUDE, "latitudes must descend"),
        ([100.0, 10.0], LONGITUDE, "latitudes must lie in"),
        ([10.0, -10.0], LONGITUDE - 180, r"longitudes must go once .* in \[0, 360\) degrees: got -180"),
        ([10.0, -10.0], np.array([0, 10, 30.0]), "evenly, .* in steps of 10 to 20"),
        ([10.0, -10.0], np.arange(8) * 10.0, "once around the globe"),
    ],
)
def test_grids_that_are_not_canonical_are_refused(latitude, longitude, message):
    with pytest.raises(ValueError, match=message):
        Grid(np.array(latitude), longitude)
