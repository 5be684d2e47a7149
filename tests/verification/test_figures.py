"""The maps' colour scales and titles are those of the fields, and they fill their frames."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from PIL import Image

from tests.archives import make_grid
from weathermixer.fields.grid import area_weights
from weathermixer.fields.variables import Channel
from weathermixer.verification.figures import _natural_earth, draw_archive, draw_errors, draw_forecast, save_animation

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


def test_a_map_has_no_white_strip_at_its_edges_and_coasts_go_on_across_180_degrees():
    land = np.zeros(GRID.shape, np.float32)
    land[:8] = 1  # a coast along the equator
    figure = draw_forecast(
        np.full(GRID.shape, 280.0),
        None,
        grid=GRID,
        channel=Channel("2m_temperature"),
        start=START,
        lead_hours=6,
        land=land,
    )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box = figure.axes[0].get_window_extent()
    pixels = np.asarray(canvas.buffer_rgba())[::-1, :, :3]
    inside = pixels[int(box.y0) + 3 : int(box.y1) - 2, int(box.x0) + 3 : int(box.x1) - 2].astype(int)
    assert inside.shape[1] > 300 and not (inside > 250).all(axis=2).any()
    middle = inside[inside.shape[0] // 2 - 3 : inside.shape[0] // 2 + 4]
    assert (middle.sum(axis=2).min(axis=0) < 150).mean() > 0.99  # black all the way


def test_maps_of_errors_have_one_scale_from_zero_and_the_globes_errors_above():
    errors = np.stack([np.full(GRID.shape, value) for value in (1.0, 2.0, 4.0, 8.0)])
    figure = draw_errors(errors, grid=GRID, channel=Channel("2m_temperature"), lead_hours=[6, 24, 48, 120])
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["6 h: 1.000", "24 h: 2.000", "48 h: 4.000", "120 h: 8.000"]
    limits = {axis.collections[0].get_clim() for axis in figure.axes[:4]}
    assert limits == {(0.0, 8.0)}


def find_white(figure) -> float:
    """The highest band of a figure that is white from side to side, in inches."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    white = (np.asarray(canvas.buffer_rgba()) == 255).all(axis=(1, 2))
    ends = np.flatnonzero(np.diff(white, prepend=False, append=False))
    return (ends[1::2] - ends[::2]).max() / figure.dpi


@pytest.mark.parametrize(
    "names", [["2m_temperature"], [f"temperature_{level}" for level in (500, 700, 850, 925, 1000)]]
)
def test_pictures_have_no_empty_bands(make_archive, names):
    assert find_white(draw_archive(make_archive(names=names))) < 0.35
    errors = np.random.default_rng(0).random((len(names), *GRID.shape))
    options = dict(channel=Channel("temperature", 850), lead_hours=[6 + 6 * n for n in range(len(names))])
    assert find_white(draw_errors(errors, grid=GRID, **options)) < 0.35


def test_an_animation_goes_through_all_leads_and_analyses_may_end(tmp_path):
    forecast = np.random.default_rng(0).normal(size=(5, *GRID.shape))
    truth = np.where(np.arange(5)[:, None, None] < 3, forecast + 1, np.nan)
    options = dict(grid=GRID, channel=Channel("2m_temperature"), start=START, lead_hours=[0, 6, 12, 18, 24])
    save_animation(tmp_path / "a.gif", forecast, truth, **options)
    with Image.open(tmp_path / "a.gif") as both:
        assert both.n_frames == 5 and both.size[0] > 600
        first = np.asarray(both.convert("RGB"))
        both.seek(4)
        assert (np.asarray(both.convert("RGB")) != first).mean() > 0.05
    save_animation(tmp_path / "b.gif", forecast, None, **options)
    with Image.open(tmp_path / "b.gif") as one:
        assert one.size[0] < 450


def test_coasts_are_natural_earths_where_cartopy_has_them(tmp_path, monkeypatch):
    cartopy = pytest.importorskip("cartopy", reason="needs cartopy: pip install 'weathermixer[maps]'")
    shapefile = pytest.importorskip("shapefile")
    monkeypatch.setitem(cartopy.config, "data_dir", tmp_path)
    monkeypatch.setattr("cartopy.io.Downloader.acquire_resource", None)  # nothing is fetched
    draw = lambda: draw_errors(np.ones((1, *GRID.shape)), grid=GRID, channel=Channel("2m_temperature"), **about)  # noqa: E731
    about = dict(lead_hours=[6], land=(np.arange(GRID.shape[1]) < 4) * np.ones(GRID.shape))
    _natural_earth.cache_clear()
    assert not any(isinstance(found, LineCollection) for found in draw().axes[0].collections)
    (folder := tmp_path / "shapefiles/natural_earth/physical").mkdir(parents=True)
    with shapefile.Writer(str(folder / "ne_110m_coastline"), shapeType=shapefile.POLYLINE) as file:
        file.field("name")
        file.line([[[0, 0], [10, 20], [-30, 40]], [[50, 60], [70, 65]]])
        file.record("two")
    _natural_earth.cache_clear()
    (lines,) = [found for found in draw().axes[0].collections if isinstance(found, LineCollection)]
    np.testing.assert_allclose(lines.get_segments()[0], [[0, 0], [10, 20], [-30, 40]])
    assert len(lines.get_segments()) == 2 and draw().axes[0].get_xlim()[1] > 170
    _natural_earth.cache_clear()
