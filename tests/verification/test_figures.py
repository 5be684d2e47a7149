"""The map's colour scales and title are those of the fields."""

import numpy as np
import pytest

from tests.archives import make_grid
from weathermixer.fields.grid import area_weights
from weathermixer.fields.variables import Channel
from weathermixer.verification.figures import draw_forecast

GRID = make_grid(16, 32)
START = np.datetime64("2020-12-01T00", "ns")


def draw(tmp_path, forecast, truth, channel="10m_u_component_of_wind", **options):
    figure = draw_forecast(forecast, truth, grid=GRID, channel=Channel(channel), start=START, lead_hours=30, **options)
    figure.savefig(tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"
    return figure


def test_forecast_and_analysis_share_a_scale_and_the_difference_has_its_own(tmp_path):
    random = np.random.default_rng(0)
    truth = 10 * random.normal(size=GRID.shape)
    forecast = truth + random.normal(size=GRID.shape) + 0.5
    land = (random.random(GRID.shape) < 0.3).astype(np.float32)
    figure = draw(tmp_path, forecast, truth, land=land)
    images = [axis.collections[0] for axis in figure.axes[:3]]
    limits = [image.get_clim() for image in images]
    assert limits[0] == limits[1] and limits[0][0] == -limits[0][1]
    assert 0 < limits[2][1] < limits[0][1] / 3 and limits[2][0] == -limits[2][1]
    assert [axis.get_title() for axis in figure.axes[:3]] == ["forecast", "analysis", "forecast − analysis"]
    rmse = np.sqrt(np.mean(area_weights(GRID.latitude)[:, None] * (forecast - truth) ** 2))
    assert figure.get_suptitle() == f"u10, 2020-12-01 00 UTC + 30 h = 2020-12-02 06 UTC, RMSE {rmse:.3f} m/s"
    # the field is drawn where it belongs: columns from 180 degrees on come first
    drawn = np.asarray(images[0].get_array()).reshape(GRID.shape)
    np.testing.assert_array_equal(drawn, np.roll(forecast, 16, axis=1))


@pytest.mark.parametrize("channel", ["geopotential", "2m_temperature", "anything_else"])
def test_without_a_truth_there_is_one_map(tmp_path, channel):
    figure = draw(tmp_path, np.full(GRID.shape, 280.0), None, channel=channel)
    assert len([axis for axis in figure.axes if axis.get_title()]) == 1
