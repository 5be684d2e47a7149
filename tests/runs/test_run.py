"""A run takes what its numbers refer to from itself: other archives and sources give the same, or it says why not."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from experiments import forecast, train
from tests.experiments.test_train import make_run_settings
from tests.sources.written_sources import frames_of, make_dataset, write_zarr
from weathermixer.parallel.mesh import make_mesh
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.runs.run import open_run
from weathermixer.sources.sources import open_source
from weathermixer.training.checksums import read_document, write_document
from weathermixer.verification.scores import format_scores

ROOT = pathlib.Path(__file__).parents[2]
TIMES = np.datetime64("2000-01-01T00", "ns") + np.arange(40) * np.timedelta64(6, "h")
CHANNELS = ("2m_temperature", "geopotential_500", "temperature_850", "temperature_500")  # not the archive's order
START = TIMES[[30]]
CONSTANT = dict(optimizer__schedule="constant", training__checkpoint_every=1, training__log_every=1)


def weather(**options):
    return make_dataset(times=TIMES, lat=8, lon=16, levels=(500, 850), **options)


def prepare(dataset, path, **options):
    return prepare_archive(open_source(dataset), path, dtype="float32", **options)


def settings(**changes):
    """Of a run of two steps on four of the archive's five channels."""
    return make_run_settings(**{"data__channels": CHANNELS, "training__steps": 2, "evaluation__every": 0} | changes)


@pytest.fixture
def run(whole):
    return open_run(whole[0])


def assert_same(a: xr.Dataset, b: xr.Dataset, **tolerance):
    assert set(a.data_vars) == set(b.data_vars)
    for name in a.data_vars:
        np.testing.assert_allclose(a[name], b[name], **tolerance)
    assert tolerance or a.drop_attrs().identical(b.drop_attrs())


def test_lagged_members_are_the_forecasts_of_earlier_analyses_at_the_same_times(run, tmp_path):
    options = dict(starts=TIMES[[30, 33]], hours=12, members=3, perturbation_kind="lagged", analysis=True)
    found = run.forecast(**options)
    for member in range(3):
        hours = 6 * member
        alone = run.forecast(starts=TIMES[[30, 33]] - np.timedelta64(hours, "h"), hours=12 + hours, analysis=True)
        for name, field in found.isel(number=member).items():
            np.testing.assert_allclose(field, alone[name].isel(prediction_timedelta=slice(member, None)), rtol=1e-5)
    with run.forecast(**options, output=tmp_path / "lagged.zarr") as written:
        assert_same(written.load().drop_encoding(), found, rtol=1e-5)
    with pytest.raises(ValueError, match="lacks 1999-12-31T18, where a lagged member of 2000-01-01T06 begins"):
        run.forecast(**options | {"starts": TIMES[[1]]})
    with pytest.raises(ValueError, match="no start to forecast from"):
        run.forecast(starts=[])


def test_a_run_forecasts_from_a_dataset_in_memory(run):
    dataset = weather()
    found = run.forecast(dataset, starts=TIMES[[30, 31]], hours=18, analysis=True)
    assert found["temperature"].dims == ("time", "prediction_timedelta", "level", "latitude", "longitude")
    hours = found.prediction_timedelta.values / np.timedelta64(1, "h")
    assert (found.time.values == TIMES[[30, 31]]).all() and hours.tolist() == [0, 6, 12, 18]
    np.testing.assert_allclose(found["temperature"][:, 0], dataset["temperature"][30:32], rtol=1e-6)
    assert (found["temperature"][:, 1] != found["temperature"][:, 0]).any()
    assert np.isnan(found.geopotential.sel(level=850)).all() and np.isfinite(found.geopotential.sel(level=500)).all()
    one = run.forecast(dataset.isel(time=[30]), hours=18)
    assert_same(one, found.isel(time=[0], prediction_timedelta=slice(1, None)), rtol=1e-6)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_the_archive_gives_the_same_forecast_as_the_source_it_is_from(whole, tmp_path, mesh):
    run = open_run(whole[0], mesh=make_mesh(*mesh))
    written = run.forecast(starts=START, hours=12, output=tmp_path / "f.zarr")
    assert_same(written.load(), run.forecast(weather(), starts=START, hours=12), rtol=1e-5)
    assert written.attrs["title"] == "forecasts of a WeatherMixer trained for 2 steps"


def test_a_forecast_starts_without_what_is_output_only(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    record = read_document(tmp_path / "run" / "run.json")
    record["channels"][0]["role"] = "output_only"  # the same parameters, which are not shown 2m_temperature any more
    write_document(record, tmp_path / "run" / "run.json")
    run, without = open_run(tmp_path / "run"), weather().drop_vars("2m_temperature")
    assert run.reference.channel_set.output_only == ("2m_temperature",)
    found = run.forecast(without, starts=START, hours=12, analysis=True)
    assert np.isnan(found["2m_temperature"][:, 0]).all() and np.isfinite(found["2m_temperature"][:, 1:]).all()
    complete = run.forecast(starts=START, hours=12, analysis=True)  # of the archive: it has them
    assert np.isfinite(complete["2m_temperature"]).all()
    leads = {"prediction_timedelta": slice(1, None)}
    assert_same(found.isel(leads), complete.isel(leads), rtol=1e-5)
    np.testing.assert_allclose(found["temperature"][:, 0], complete["temperature"][:, 0], rtol=1e-5)
    without.isel(time=[30]).to_netcdf(tmp_path / "analysis.nc")
    command = [str(tmp_path / "run"), f"--data={tmp_path}/analysis.nc", "--hours=12", "--plot-hours=12"]
    command += [f"--output={tmp_path}/f.nc", f"--plot={tmp_path}/f.png", "--channel=2m_temperature"]
    forecast.main(command)
    with xr.open_dataset(tmp_path / "f.nc") as written:
        np.testing.assert_array_equal(written["2m_temperature"], found["2m_temperature"][:, 1:])
    with pytest.raises(ValueError, match="has no variable '2m_temperature'"):  # there is nothing to score it with
        run.evaluate(without, period=("2000-01-07", "2000-01-08"), lead_hours=[6])
    with pytest.raises(ValueError, match=r"has no channels \['2m_temperature'\], which are to be scored"):
        run.evaluate(run.open_data(without), period=("2000-01-07", "2000-01-08"), lead_hours=[6])
    with pytest.raises(ValueError, match="has no variable 'geopotential_500'"):
        run.forecast(without.drop_vars("geopotential"), starts=START)


def test_order_names_units_and_directions_do_not_matter(run):
    dataset = weather()
    other = dataset[["temperature", "2m_temperature", "geopotential"]]
    other = other.isel(latitude=slice(None, None, -1), level=[1, 0]).roll(longitude=5, roll_coords=True)
    other = other.assign({"2m_temperature": (other["2m_temperature"] - 273.15).assign_attrs(units="degC")})
    other = other.rename({"temperature": "t", "geopotential": "z", "2m_temperature": "t2m", "latitude": "lat"})
    options = {"starts": START, "hours": 12}
    assert_same(run.forecast(other, **options), run.forecast(dataset, **options), rtol=1e-5)


def test_another_archives_statistics_are_not_taken(run, tmp_path):
    """24 h z500 error 166 instead of 158, a forecast that moves by 52 m2/s2: an archive of other years did that."""
    other = prepare(weather(), tmp_path / "other", statistics_period=("2000-01-01", "2000-01-02"))
    assert (other.statistics.std != run.open_data().statistics.std).all()
    options = {"starts": START, "hours": 24}
    assert_same(run.forecast(other, **options), run.forecast(**options))
    a, b = (run.evaluate(data, period=("2000-01-08", "2000-01-10"), lead_hours=[6]) for data in (None, other))
    xr.testing.assert_identical(a.drop_attrs(), b.drop_attrs())


def test_another_archives_order_of_channels_does_not_matter(run, tmp_path):
    """v before u: 6 h RMSE 1.53 instead of 0.83."""
    names = ["temperature_500", "temperature_850", "geopotential_500", "2m_temperature"]
    archive = prepare_archive(open_source(weather(), variables=names), tmp_path / "other", dtype="float32")
    assert [channel.name for channel in archive.channels] == names
    options = {"starts": START, "hours": 12}
    assert_same(run.forecast(archive, **options), run.forecast(**options))


def test_another_archives_step_is_not_the_models(run, tmp_path):
    """A 6 h model was applied as 12 h."""
    archive = prepare_archive(open_source(weather(), step_hours=12), tmp_path / "other", dtype="float32")
    found = run.forecast(archive, starts=START, hours=24)
    assert found.prediction_timedelta.size == 4
    assert_same(found, run.forecast(starts=START, hours=24))
    period = ("2000-01-08", "2000-01-10")
    scores = run.evaluate(archive, period=period, lead_hours=[12])
    assert scores.attrs["step_hours"] == 6
    with pytest.raises(ValueError, match=r"lead_hours=\[6\]: no start .* has a valid time"):
        run.evaluate(archive, period=period, lead_hours=[6])


def test_an_archive_of_one_analysis_is_enough(run, tmp_path):
    archive = prepare(weather().isel(time=[30]), tmp_path / "one", keep_faults=True)
    assert_same(run.forecast(archive, hours=12), run.forecast(starts=START, hours=12))


def test_what_contradicts_the_run_is_refused_with_the_difference(run, tmp_path):
    with pytest.raises(ValueError, match=r"has no variable 'geopotential_500'"):
        run.forecast(weather().drop_vars("geopotential"), hours=6)
    with pytest.raises(
        ValueError,
        match=r"is on another grid than the model: latitudes 70.0 \.\.\. -70.0 \(8 values\), not 78.75",
    ):
        run.forecast(weather().assign_coords(latitude=np.linspace(70, -70, 8)), hours=6)
    other = make_dataset(times=TIMES, lat=8, lon=32, levels=(500, 850))
    with pytest.raises(ValueError, match=r"longitudes .*32 values\), not .*16 values\)"):
        run.forecast(prepare(other, tmp_path / "other"), starts=START, hours=6)
    holes = weather()
    holes["temperature"][30, 1, 2, :3] = np.nan
    with pytest.raises(ValueError, match=r"temperature_850 at 2000-01-08T12:00 has 3 of 128 values that are missing"):
        run.forecast(holes, starts=START, hours=6)
    with pytest.raises(ValueError, match=r"start=2001-01-01T00 is not in .*nearest time is 2000-01-10T18"):
        run.forecast(weather(), starts=[np.datetime64("2001-01-01")], hours=6)


def test_a_south_pole_that_was_cropped_in_training_is_cropped_again(tmp_path):
    dataset = make_dataset(times=TIMES, lat=9, lon=16, levels=(500, 850), poles=True)
    archive = prepare_archive(open_source(dataset, crop_south_pole=True), tmp_path / "a", dtype="float32")
    run = train.train(settings(training__steps=1), tmp_path / "run", archive.path)
    found = run.forecast(dataset, starts=START, hours=6, analysis=True)
    np.testing.assert_allclose(found["2m_temperature"][0, 0], dataset["2m_temperature"][30, :-1], rtol=1e-6)


def test_scores_straight_from_a_source_are_those_of_its_archive(run, tmp_path):
    options = {"period": ("2000-01-08", "2000-01-10"), "lead_hours": [6, 24], "max_starts": 4}
    store = write_zarr(weather(), tmp_path / "weather.zarr")
    straight, prepared = run.evaluate(store, **options), run.evaluate(**options)
    np.testing.assert_allclose(straight.rmse, prepared.rmse, rtol=1e-4)
    assert straight.attrs["source"] == str(store)


def test_scores_need_no_training_years(run):
    options = {"period": ("2000-01-08", "2000-01-10"), "lead_hours": [6]}
    scores = run.evaluate(weather().isel(time=slice(28, None)), **options)
    both = ["model", "persistence"]
    complete = run.evaluate(weather(), **options).sel(source=both)
    np.testing.assert_allclose(scores.rmse.sel(source=both), complete.rmse, rtol=1e-6)
    assert np.isnan(scores.rmse.sel(source="climatology")).all() and np.isnan(scores.acc).all()
    assert "none, the data holds no time" in format_scores(scores)


def test_forecasts_start_at_any_hour_of_an_hourly_source(run):
    hourly = weather().assign_coords(time=TIMES[0] + np.arange(40) * np.timedelta64(1, "h"))
    starts = hourly.time.values[[3, 7, 21]]
    found = run.forecast(hourly, starts=starts, hours=6, analysis=True)
    np.testing.assert_allclose(found["2m_temperature"][:, 0], hourly["2m_temperature"][[3, 7, 21]], rtol=1e-6)
    assert run.forecast(hourly, hours=6).sizes["time"] == 40


@pytest.mark.parametrize("method", ["conservative", "linear"])
def test_another_grid_is_regridded_on_request(run, method, tmp_path):
    fine = make_dataset(times=TIMES[30:31], lat=37, lon=72, levels=(500, 850), poles=True)
    with pytest.raises(ValueError, match="is on another grid than the model"):
        run.forecast(fine, hours=6)
    found = run.forecast(fine, hours=6, analysis=True, regrid=method)
    target = xr.Dataset(coords={"latitude": found.latitude, "longitude": found.longitude})
    expected = fine["2m_temperature"].interp_like(target)[0].fillna(found["2m_temperature"][0, 0])
    assert float(np.abs(found["2m_temperature"][0, 0] - expected).mean()) < 1.0 and found.sizes["latitude"] == 8


@pytest.mark.skipif("WEATHERMIXER_REAL_DATA" not in os.environ, reason="WEATHERMIXER_REAL_DATA: no folder of real data")
def test_a_forecast_from_a_real_file(run, tmp_path):
    """A complete GFS file, GRIB at 2.5 degrees, as it is; the forecast is GRIB too."""
    pytest.importorskip("cfgrib", reason="no cfgrib: pip install 'weathermixer[grib]'")
    file = pathlib.Path(os.environ["WEATHERMIXER_REAL_DATA"], "io", "gfs.t12z.pgrbf120.2p5deg.grib2")
    found = run.forecast(file, hours=12, analysis=True, regrid="conservative", output=tmp_path / "f.grib2")
    assert 5.0e4 < found.geopotential[0, 0].sel(level=500).mean() < 5.8e4 and np.isfinite(found["2m_temperature"]).all()
    again = run.forecast(tmp_path / "f.grib2", starts=found.time.values, hours=6, analysis=True)
    np.testing.assert_allclose(again.temperature[0, 0], found.temperature[0, 0], atol=1e-3)


@pytest.mark.parametrize("ending", [".nc", ".zarr"])
def test_the_command_forecasts_from_a_file_of_one_analysis(whole, tmp_path, ending, capsys):
    file, output = tmp_path / f"analysis{ending}", tmp_path / "forecast.nc"
    one = weather().isel(time=[30])
    one.to_netcdf(file) if ending == ".nc" else write_zarr(one, file)
    forecast.main([str(whole[0]), f"--data={file}", "--hours=12", f"--output={output}", "--mesh=1,1,1", "--analysis"])
    with xr.open_dataset(output) as found:
        assert_same(found, open_run(whole[0]).forecast(weather(), starts=START, hours=12, analysis=True), rtol=1e-6)
    assert capsys.readouterr().out == f"1 forecast(s) of 12 h in {output}\n"
    weather().to_netcdf(tmp_path / "many.nc")
    with pytest.raises(ValueError, match=r"many.nc has 40 times to start from, 2000-01-01T00 to .*: give --start"):
        forecast.main([str(whole[0]), f"--data={tmp_path / 'many.nc'}", "--hours=12"])


def test_a_run_needs_neither_its_archive_nor_its_place(whole, tmp_path):
    expected = open_run(whole[0]).forecast(weather(), starts=START, hours=12)
    moved = tmp_path / "moved"
    shutil.copytree(whole[0], moved)
    values = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(values | {"archive": "/nowhere"}))
    assert_same(open_run(moved).forecast(weather(), starts=START, hours=12), expected)


def test_a_run_of_older_software_is_refused_until_its_command_is_called_once_more(whole, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(whole[0], old)
    (old / "run.json").unlink()
    with pytest.raises(ValueError, match="older software.*call its training command once more"):
        open_run(old)
    train.train(settings(**CONSTANT), old, whole[1])
    assert open_run(old).step == 2


def test_a_resumed_run_has_its_own_archive_or_says_that_another_will_do(whole, tmp_path):
    workdir, other = tmp_path / "run", prepare(weather(seed=1), tmp_path / "other")
    shutil.copytree(whole[0], workdir)
    with pytest.raises(
        ValueError, match=r"holds a run on .*archive \(.*, checksum .*not .*other \(.*say --accept-data"
    ):
        train.train(settings(**CONSTANT), workdir, other.path)
    with pytest.raises(ValueError, match="has done all of its 2 steps: on .*other nothing is left to train"):
        train.train(settings(**CONSTANT), workdir, other.path, accept_data=True)
    shutil.copytree(whole[0], tmp_path / "longer")
    longer = settings(**CONSTANT, training__steps=3)
    run = train.train(longer, tmp_path / "longer", other.path, accept_data=True)
    np.testing.assert_array_equal(run.reference.mean, open_run(whole[0]).reference.mean)
    later = prepare_archive(open_source(weather(), step_hours=12), tmp_path / "later")
    with pytest.raises(ValueError, match="holds a run with steps of 6 h, .* has times 12 h apart"):
        train.train(settings(**CONSTANT), workdir, later.path, accept_data=True)


def test_what_a_run_keeps_is_what_it_was_given(whole, run):
    archive = run.open_data()
    chosen = archive.channel_indices(CHANNELS)
    for name in ("mean", "std", "tendency_std"):
        np.testing.assert_array_equal(getattr(run.reference, name), getattr(archive.statistics, name)[chosen])
    with xr.open_zarr(pathlib.Path(whole[0]) / "static.zarr", consolidated=False, chunks=None) as kept:
        for name, field in archive.static.items():
            np.testing.assert_array_equal(kept[name], field)
            np.testing.assert_array_equal(run.reference.static[name], field)
        np.testing.assert_array_equal(kept.latitude, archive.grid.latitude)
    # an analysis in SI units comes out of the model's numbers as it went in
    frames = np.asarray(run.open_frames().read(np.array([30])))[0, :4]
    physical = frames * run.reference.std[:, None, None] + run.reference.mean[:, None, None]
    np.testing.assert_allclose(physical, frames_of(weather(), run.reference.channel_set.dynamic)[30], rtol=1e-5)


@pytest.mark.slow
def test_two_processes_write_one_forecast(whole, tmp_path):
    """Each writes the bands that its devices hold; the store is that of one process on the same mesh."""
    command = ["bash", str(ROOT / "launch/local.sh"), "2", sys.executable, "-m", "experiments.forecast"]
    starts = ",".join(str(time)[:13] for time in TIMES[30:34])
    command += [str(whole[0]), f"--start={starts}", "--hours=12", "--mesh=2,2,1", f"--output={tmp_path}/two.zarr"]
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "2"}
    environment.pop("XLA_FLAGS", None)
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    alone = open_run(whole[0], mesh=make_mesh(2, 2, 1)).forecast(starts=TIMES[30:34], hours=12)
    assert_same(xr.open_zarr(tmp_path / "two.zarr", chunks=None).load(), alone, rtol=1e-6)
