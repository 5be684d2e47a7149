"""What charts show is what the scores say: values, signs, hatching, units, places."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.patches import Rectangle

from weathermixer.verification.charts import choose_channels, draw_scorecard, draw_scores, draw_series, draw_spectra
from weathermixer.verification.metrics import compute_metrics
from weathermixer.verification.significance import compare

CHANNELS = {
    "temperature_850": ("t850", "K", "temperature", 850),
    "temperature_500": ("t500", "K", "temperature", 500),
    "specific_humidity_850": ("q850", "kg kg**-1", "specific_humidity", 850),
    "2m_temperature": ("t2m", "K", "2m_temperature", np.nan),
}
STARTS, LEADS = np.datetime64("2020-01-01", "ns") + 24 * np.arange(40) * np.timedelta64(1, "h"), [6, 24, 48]


@pytest.fixture(scope="module")
def scores():
    """b is better than a on all but the humidity, where their errors are as large, each for itself."""
    random = np.random.default_rng(0)
    size = (3, len(STARTS), 2, len(LEADS), len(CHANNELS))
    dims = ("source", "time", "region", "lead_hours", "channel")
    error = (1 + np.arange(3)[:, None]) * np.exp(0.1 * random.normal(size=size))
    error[1, ..., [0, 1, 3]] *= 0.8
    error[0] *= 5  # persistence
    short, units, variable, level = zip(*CHANNELS.values())
    statistics = {
        "squared_error": (dims, error**2),
        "error": (dims, error),
        "anomaly_correlation": (dims, np.where(np.array(variable) == "2m_temperature", np.nan, 1 - error / 100)),
        "counted": (dims[1:], np.ones(size[1:], bool)),
    }
    about = {"short": short, "units": units, "variable": variable, "level_hpa": level}
    about = {name: ("channel", list(values)) for name, values in about.items()}
    coords = {"source": ["persistence", "b", "a"], "time": STARTS, "region": ["global", "tropics"]}
    found = xr.Dataset(statistics, coords | {"lead_hours": LEADS, "channel": list(CHANNELS)} | about)
    return found.assign(compute_metrics(found))


def test_a_scorecard_shows_the_differences_in_per_cent_and_hatches_what_may_be_chance(scores, tmp_path):
    figure = draw_scorecard(scores, "b", "a")
    figure.savefig(tmp_path / "card.png")
    axes = np.array(figure.axes[:6]).reshape(3, 2)  # variables x regions
    assert [axis.get_title() for axis in axes[0]] == ["global", "tropics"]
    assert [[tick.get_text() for tick in axis.get_yticklabels()] for axis in axes[:, 0]] == [
        ["t500", "t850"],  # levels from above
        ["q850"],
        ["t2m"],
    ]
    found = compare(scores, "b", "a").sel(region="tropics", channel=["temperature_500", "temperature_850"])
    expected = 100 * found.difference / scores.rmse.sel(source="a", region="tropics", channel=found.channel)
    image = axes[0, 1].collections[0]
    np.testing.assert_allclose(np.asarray(image.get_array()).ravel(), expected.transpose("channel", ...).values.ravel())
    low, high = image.get_clim()
    assert low == -high and image.get_cmap().name == "RdBu_r" and (expected < -15).all()
    hatched = [sum(isinstance(patch, Rectangle) for patch in axis.patches) for axis in axes[:, 1]]
    chance = (compare(scores, "b", "a").p_value.sel(region="tropics", channel="specific_humidity_850") >= 0.05).sum()
    assert hatched == [0, chance, 0] and chance >= 2
    assert "2020-01-01T00 to 2020-02-09T00 UTC" in figure.axes[-1].get_xlabel()


def test_for_correlations_more_is_better_and_channels_without_one_are_left_out(scores):
    figure = draw_scorecard(scores.isel(region=0), "b", "a", metric="acc")
    axes = figure.axes[:-1]
    assert [axis.collections[0].get_cmap().name for axis in axes] == ["RdBu", "RdBu"]
    shown = [tick.get_text() for axis in axes for tick in axis.get_yticklabels()]
    assert shown == ["t500", "t850", "q850"]


def test_scores_over_lead_are_in_the_units_that_are_read(scores, tmp_path):
    globe = scores.isel(region=0)
    figure = draw_scores(globe)
    figure.savefig(tmp_path / "scores.png")
    shown = {axis.get_title(): axis for axis in figure.axes if axis.get_title()}
    assert list(shown) == ["t500", "q850", "t2m"]
    assert shown["q850"].get_ylabel() == "RMSE in g/kg"
    lines = {line.get_label(): line for line in shown["q850"].lines}
    expected = 1000 * globe.rmse.sel(source="b", channel="specific_humidity_850")
    np.testing.assert_allclose(lines["b"].get_ydata(), expected)
    assert lines["persistence"].get_linestyle() == ":" and lines["a"].get_color() != lines["b"].get_color()
    assert lines["a"].get_marker() != lines["b"].get_marker()
    figure = draw_scores(globe, metric="acc", channels=["2m_temperature", "temperature_850"])
    assert [len(axis.lines) for axis in figure.axes] == [0, 3]


def test_a_chosen_channel_is_next_to_500_hpa(scores):
    assert choose_channels(scores) == ["temperature_500", "specific_humidity_850", "2m_temperature"]
    assert choose_channels(scores, 1) == ["temperature_500"]


def test_spectra_are_beside_those_of_the_analyses(scores, tmp_path):
    power = 1.0 / (1 + np.arange(17)) ** 3 * np.ones((3, len(LEADS), 3, len(CHANNELS), 1))
    dims = ("source", "lead_hours", "band", "channel", "wavenumber")
    globe = scores.isel(region=0).assign(spectrum=(dims, power), spectrum_truth=(dims[1:], 2 * power[0]))
    globe = globe.assign_coords(band=["south", "middle", "north"], wavenumber=np.arange(17))
    figure = draw_spectra(globe, channel="temperature_850", lead_hours=24)
    figure.savefig(tmp_path / "spectra.png")
    assert [axis.get_title() for axis in figure.axes] == ["south", "middle", "north"]
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[1].lines}
    np.testing.assert_allclose(lines["analyses"], 2 * lines["a"])
    assert len(lines["a"]) == 16  # without the mean


def test_a_series_is_of_the_grid_point_next_to_the_place():
    times = np.datetime64("2020-01-30T18", "ns") + np.arange(8) * np.timedelta64(6, "h")
    latitude, longitude = np.array([60.0, 0.0, -60.0]), np.arange(0, 360, 90.0)
    field = xr.DataArray(
        np.random.default_rng(0).normal(size=(8, 3, 4)),
        {"time": times, "latitude": latitude, "longitude": longitude},
        ("time", "latitude", "longitude"),
        name="specific_humidity",
    )
    options = dict(latitude=-50.0, longitude=-80.0, units="kg kg**-1")
    (axis,) = draw_series({"forecast": field, "analyses": field + 1}, **options).axes
    np.testing.assert_allclose(axis.lines[0].get_ydata(), 1000 * field[:, 2, 3])
    assert axis.get_ylabel() == "specific_humidity in g/kg"
    assert axis.figure.get_supxlabel() == "time (UTC) at 60°S, 90°W"
