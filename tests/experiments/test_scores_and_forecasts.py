"""The programs that score a run and forecast with it, on a run made by hand and on real analyses."""

import json
import os
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from experiments.evaluate import score
from experiments.forecast import write
from tests.archives import make_archive
from tests.sources.written_sources import make_dataset
from weathermixer.archive.archive import open_archive
from weathermixer.archive.reference import make_reference
from weathermixer.archive.sampling import spread
from weathermixer.fields.grid import area_weights
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel.mesh import make_mesh
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.runs.run import Run
from weathermixer.runs.settings import Settings
from weathermixer.sources.sources import open_source

CHANNELS = ChannelSet.from_names(
    ["2m_temperature", "geopotential_500", "geopotential_850"], ["land_sea_mask"], multiple=4
)
TIMES = np.datetime64("2020-01-01T00", "ns") + np.arange(60) * np.timedelta64(6, "h")


def persist(params, x, *, repeats=1, key=None):
    return x * params * (np.arange(4) < 3).astype(np.float32)[None, :, None, None]


def make_run(workdir, archive, channels, mesh, train=("2020-01-01", "2020-01-08")) -> Run:
    settings = Settings().replace(
        {
            "data.train": train,
            "data.test": ("2020-01-09", "2020-01-15"),
            "evaluation.lead_hours": (6, 24),
            "evaluation.forecast_hours": 30,
        }
    )
    workdir.mkdir()
    reference = make_reference(archive, channels)
    return Run(workdir, settings, reference, archive.path, mesh, persist, jnp.float32(1.0), 500)


@pytest.fixture
def run(tmp_path):
    fields = np.cumsum(np.random.default_rng(0).normal(size=(60, 3, 8, 12)), axis=0).astype(np.float32)
    static = {"land_sea_mask": (np.random.default_rng(1).random((8, 12)) < 0.3).astype(np.float32)}
    archive = make_archive(tmp_path / "archive", fields, times=TIMES, channel_set=CHANNELS, static=static)
    return make_run(tmp_path / "run", archive, CHANNELS, make_mesh(2, 2, 2))


def test_score_takes_what_is_not_given_from_the_config(run, capsys):
    scores = score(run)
    np.testing.assert_allclose(scores.rmse.sel(source="model"), scores.rmse.sel(source="persistence"), rtol=1e-6)
    # 28 times from the 9th to the 15th, the last valid time being the 15th, 18 h
    assert scores.samples.values.tolist() == [27, 24] and scores.attrs["first_start"] == "2020-01-09T00"
    table = capsys.readouterr().out
    assert "z500" in table and "24 at 24 h" in table
    found = json.loads((run.path / "scores.json").read_text())
    assert (
        found["rmse"]["model"]["geopotential_500"]
        == scores.rmse.sel(source="model", channel="geopotential_500").values.tolist()
    )
    assert found["step"] == 500


@pytest.mark.slow
def test_the_archives_climatology_counts_unless_it_holds_scored_times(tmp_path, capsys):
    times = np.arange(np.datetime64("2019-01-01T00", "ns"), np.datetime64("2021-02-01", "ns"), np.timedelta64(12, "h"))
    source = open_source(make_dataset(times=times, lat=8, lon=12, levels=(500, 850)), step_hours=12)
    archive = prepare_archive(source, tmp_path / "archive", climatology=True, statistics_period=("2019", "2020"))
    run = make_run(tmp_path / "run", archive, CHANNELS, make_mesh(2, 2, 2), train=("2019", "2020"))
    scores = score(run, period=("2021-01-01", "2021-01-31"), lead_hours=(12,))
    assert scores.attrs["climatology"].startswith("the archive's of 2019 to 2020, ")
    with xr.open_zarr(archive.path, group="climatology", chunks=None) as group:
        normal = group["2m_temperature"].values  # [hour, day, lat, lon]
    stored = archive.store[:, 0].read().result().astype(np.float64)
    truth = (stored * archive.scale[0] + archive.offset[0])[times >= np.datetime64("2021-01-01T12")]
    difference = truth - normal.transpose(1, 0, 2, 3).reshape(-1, 8, 12)[1:62]
    weights = area_weights(archive.grid.latitude)[:, None]
    expected = np.sqrt((weights * difference**2).mean())
    found = scores.rmse.sel(source="climatology", lead_hours=12, channel="2m_temperature")
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert "takes its place" not in capsys.readouterr().out

    scores = score(run, period=("2020-12-01", "2021-01-31"), lead_hours=(12,), max_starts=4)
    assert scores.attrs["climatology"].startswith("mean of the training period")
    assert "is also of times that are scored: one of other times takes its place" in capsys.readouterr().out


def test_score_takes_what_is_given(run, tmp_path):
    other = tmp_path / "other.json"
    scores = score(
        run,
        period=("2020-01-10", "2020-01-11"),
        lead_hours=(12,),
        mode="latent",
        max_starts=4,
        batch_size=2,
        output=other,
    )
    assert scores.samples.values.tolist() == [
        3
    ]  # of four starts spread over two days, the last has no valid time there
    assert json.loads(other.read_text())["mode"] == "latent" and not (run.path / "scores.json").exists()


def test_what_the_config_says_is_the_same_question(run):
    said = dict(period=("2020-01-09", "2020-01-15"), lead_hours=(6, 24), mode="autoregressive", max_starts=0)
    score(run, open_archive(run.archive), **said, batch_size=2)
    assert sorted(path.name for path in run.path.glob("*.json")) == ["scores.json"]
    (run.path / "checkpoints" / "600").mkdir(parents=True)  # then the one of step 500 is another question
    score(run, lead_hours=(6,))
    score(run)
    assert len(list(run.path.glob("scores-*.json"))) == 2


def test_a_period_without_data_is_named(run):
    with pytest.raises(ValueError, match=r"period 1999 to 2000 is empty.*2020-01-01T00 to 2020-01-15T18"):
        score(run, period=("1999", "2000"))


def test_forecast_writes_file_and_map(run, capsys):
    write(run, plot=run.path / "map.png")
    with xr.open_zarr(run.path / "forecast.zarr", chunks=None) as forecast:
        np.testing.assert_array_equal(forecast.time, TIMES[[32]])
        np.testing.assert_array_equal(forecast.prediction_timedelta / np.timedelta64(1, "h"), [6, 12, 18, 24, 30])
        analysis = np.asarray(open_archive(run.archive).store[32].read().result())
        np.testing.assert_allclose(forecast["2m_temperature"][0, 4], analysis[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(forecast.geopotential[0, 0], analysis[1:], rtol=1e-5, atol=1e-5)
        assert "500 steps" in forecast.attrs["title"] and forecast.attrs["initial_conditions"] == "test"
    assert (run.path / "map.png").read_bytes()[:4] == b"\x89PNG"
    assert "forecast.zarr, a map in" in capsys.readouterr().out


def test_forecast_from_several_starts_to_netcdf_beyond_the_record(run, tmp_path):
    starts = [TIMES[58], TIMES[3], TIMES[59]]
    output = tmp_path / "new folder" / "three.nc"
    write(
        run, starts=starts, hours=12, output=output, plot=tmp_path / "map.png", plot_hours=12, channel="2m_temperature"
    )
    with xr.open_dataset(output) as forecast:
        np.testing.assert_array_equal(forecast.time, np.array(starts))
        assert np.isfinite(forecast.geopotential.values).all() and forecast.sizes["prediction_timedelta"] == 2
    assert (tmp_path / "map.png").exists()
    write(run, starts=starts[:1], hours=12, output=output.with_name("one.nc"), plot=tmp_path / "moving.gif")
    assert (tmp_path / "moving.gif").read_bytes()[:3] == b"GIF"  # the analyses end before the forecast does


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hours": 7}, r"lead_hours=\[7\].*multiples of 6"),
        (
            {"starts": [np.datetime64("2020-01-02T03")]},
            r"start=2020-01-02T03 is not in.*nearest time is 2020-01-02T0[06]",
        ),
        ({"channel": "10m_u_component_of_wind"}, r"channel='10m_u_component_of_wind' is not predicted.*2m_temperature"),
        ({"output": "forecast.grib"}, r"output='forecast.grib' must end with one of .zarr, .nc, .grib2"),
    ],
)
def test_what_cannot_be_forecast_is_refused_before_it_runs(run, options, message):
    with pytest.raises(ValueError, match=message):
        write(run, **options)
    assert list(run.path.iterdir()) == []


def test_starts_are_spread_over_the_period():
    assert spread(np.arange(10), 0).tolist() == list(range(10)) == spread(np.arange(10), 10).tolist()
    assert spread(np.arange(10, 20), 4).tolist() == [10, 13, 16, 19]


@pytest.mark.skipif("WEATHERMIXER_REAL_DATA" not in os.environ, reason="WEATHERMIXER_REAL_DATA: no folder of real data")
def test_persistence_and_climatology_of_real_analyses_have_the_size_they_are_known_to_have(tmp_path):
    folder = pathlib.Path(os.environ["WEATHERMIXER_REAL_DATA"])
    prepare_archive(open_source(str(folder / "gfs_10mwind_6h_2026_dev_64x32.zarr")), str(tmp_path / "archive"))
    archive = open_archive(tmp_path / "archive")
    channels = ChannelSet.from_names(["10m_u_component_of_wind", "10m_v_component_of_wind"], multiple=4)
    run = make_run(tmp_path / "run", archive, channels, make_mesh(2, 4, 1), train=("2026-03-24", "2026-07-30"))
    scores = score(run, period=("2026-07-31", "2026-08-08"))
    # the same from the source, in plain numpy; at 6 h, 1.469 and 1.807 m/s are known of the two weeks that follow
    source = xr.open_zarr(folder / "gfs_10mwind_6h_2026_dev_64x32.zarr", chunks=None).sel(
        time=slice("2026-07-31", None)
    )
    for lead in (6, 24):
        later = source.assign_coords(time=source.time - np.timedelta64(lead, "h"))
        square = (later - source) ** 2  # on the times that both have
        bounds = np.deg2rad(
            np.concatenate([[-90], (source.latitude[1:].values + source.latitude[:-1].values) / 2, [90]])
        )
        weights = source.latitude.copy(data=np.diff(np.sin(bounds)))
        expected = np.sqrt(square.weighted(weights).mean(["latitude", "longitude"]).mean("time"))
        found = scores.rmse.sel(source="persistence", lead_hours=lead, channel=list(channels.names))
        # to the rounding of the archive's 16-bit values
        np.testing.assert_allclose(found, [expected[name].item() for name in channels.names], rtol=1e-4)
        wind = scores.rmse.sel(source="persistence", lead_hours=lead, channel="10m_wind_vector")
        np.testing.assert_allclose(wind, np.sqrt((found**2).sum()), rtol=1e-6)
    known = scores.rmse.sel(lead_hours=6, channel=list(channels.names))
    np.testing.assert_allclose(known.sel(source="persistence"), [1.469, 1.807], rtol=0.1)
    np.testing.assert_allclose(known.sel(source="climatology"), [3.428, 3.826], rtol=0.15)
