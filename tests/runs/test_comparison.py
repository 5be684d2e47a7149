"""Any forecasts against any analyses, on the same samples: files in other orders and units, ensembles, runs."""

import json

import numpy as np
import pytest
import xarray as xr

from experiments import evaluate
from tests.archives import make_grid
from tests.experiments.test_scores_and_forecasts import CHANNELS, make_run
from tests.sources.written_sources import make_dataset, write_zarr
from weathermixer.fields.grid import area_weights, equiangular_grid, regrid
from weathermixer.parallel.mesh import make_mesh
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.runs.comparison import score_forecasts
from weathermixer.runs.forecast_files import open_forecast
from weathermixer.sources.sources import open_source

TIMES = np.datetime64("2020-01-01T00", "ns") + np.arange(32) * np.timedelta64(6, "h")
LEADS = np.array([6, 12, 24])
UNITS = {"geopotential": "m**2 s**-2", "temperature": "K", "2m_temperature": "K"}


def make_truth(**options):
    dataset = make_dataset(times=TIMES, lat=8, lon=16, levels=(500, 850), **options)
    return dataset.map(lambda x: x.assign_attrs(units=UNITS.get(x.name, "1")))


def make_forecast(truth, starts=TIMES[2:20:2], leads=LEADS, seed=0, error=1.0):
    """Forecasts that are wrong by noise, in WeatherBench 2's form."""
    random, parts = np.random.default_rng(seed), []
    truth = truth[list(UNITS)]
    for lead in leads:
        part = truth.sel(time=starts + np.timedelta64(int(lead), "h")).assign_coords(time=starts)
        parts.append(
            part.map(lambda x: (x + error * random.normal(size=x.shape)).astype(np.float32).assign_attrs(x.attrs))
        )
    lead = xr.Variable("prediction_timedelta", leads.astype("timedelta64[h]").astype("timedelta64[ns]"))
    return xr.concat(parts, lead).transpose("time", "prediction_timedelta", "level", "latitude", "longitude")


def expected_rmse(forecast, truth, name, lead, level=None):
    field, valid = forecast[name].sel(prediction_timedelta=np.timedelta64(int(lead), "h")), forecast.time.values
    error = field.values - truth[name].sel(time=valid + np.timedelta64(int(lead), "h")).values
    error = error if level is None else error[:, [500, 850].index(level)]
    weights = area_weights(truth.latitude.values)[:, None]
    return np.sqrt((weights * error.astype(float) ** 2).mean())


@pytest.fixture(scope="module")
def truth():
    return make_truth()


def test_a_zarr_store_and_a_netcdf_file_of_another_order_are_scored_on_the_same_samples(truth, tmp_path):
    one = make_forecast(truth)
    other = make_forecast(truth, starts=TIMES[6:24:2], leads=np.array([6, 12, 18, 24]), seed=1, error=2.0)
    store = write_zarr(one, tmp_path / "one.zarr", zarr_format=2)
    strange = other.isel(latitude=slice(None, None, -1), level=[1, 0]).roll(longitude=5, roll_coords=True)
    celsius = (strange["2m_temperature"] - 273.15).assign_attrs(units="degC")
    strange = strange.assign({"2m_temperature": celsius}).rename({"2m_temperature": "t2m", "temperature": "t"})
    strange.rename(prediction_timedelta="step").to_netcdf(tmp_path / "other.nc")
    scores = score_forecasts({"one": store, "other": tmp_path / "other.nc"}, truth)
    assert scores.source.values.tolist() == ["one", "other", "persistence", "climatology"]
    assert scores.lead_hours.values.tolist() == [6, 12, 24] and scores.samples.values.tolist() == [7, 7, 7]
    assert "the 7 starts that all have: one 9 (2020-01-01T12" in scores.attrs["notes"]
    same = TIMES[6:20:2]
    for name, forecast in (("one", one), ("other", other)):
        forecast = forecast.sel(time=same)
        for lead in (6, 24):
            found = scores.rmse.sel(source=name, lead_hours=lead)
            pairs = {"2m_temperature": None, "geopotential_850": 850, "temperature_500": 500}
            for channel, level in pairs.items():
                variable = channel if level is None else channel.removesuffix(f"_{level}")
                expected = expected_rmse(forecast, truth, variable, lead, level)
                np.testing.assert_allclose(found.sel(channel=channel), expected, rtol=1e-3, err_msg=channel)
    persistence = (
        truth["2m_temperature"].sel(time=same + np.timedelta64(6, "h")).values
        - truth["2m_temperature"].sel(time=same).values
    )
    expected = np.sqrt((area_weights(truth.latitude.values)[:, None] * persistence**2).mean())
    found = scores.rmse.sel(source="persistence", lead_hours=6, channel="2m_temperature")
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.isnan(scores.acc).all()  # there is no climatology


def test_levels_that_a_variable_lacks_are_said_and_the_others_scored(truth, tmp_path):
    forecast = make_forecast(truth)
    forecast["temperature"] = forecast.temperature.where(forecast.level != 500)
    scores = score_forecasts({"gappy": write_zarr(forecast, tmp_path / "f.zarr")}, truth, lead_hours=[12])
    assert scores.attrs["notes"] == "gappy lacks values of temperature_500"
    lacking = scores.rmse.sel(source="gappy").isnull().squeeze()
    assert scores.channel.values[lacking].tolist() == ["temperature_500"]
    assert np.isfinite(scores.rmse.sel(source="persistence")).all()


def test_an_ensemble_is_scored_by_its_members(truth, tmp_path):
    members = [make_forecast(truth, seed=seed) for seed in range(4)]
    ensemble = xr.concat(members, xr.Variable("number", range(4)))
    scores = score_forecasts({"ens": write_zarr(ensemble, tmp_path / "ens.zarr")}, truth, lead_hours=[6])
    scores = scores.sel(source="ens", lead_hours=6, channel="2m_temperature")
    # the unbiased error of their mean is none: the ratio of spread to it is large, or undefined
    assert not scores.spread_skill < 3
    np.testing.assert_allclose(scores.spread, 1, rtol=0.05)
    np.testing.assert_allclose(scores.rmse, 0.5, rtol=0.05)  # of the mean of four
    # of members that are wrong by independent normal noise about the truth: E|x - y| - E|x - x'| / 2
    np.testing.assert_allclose(scores.crps, np.sqrt(2 / np.pi) - 1 / np.sqrt(np.pi), rtol=0.05)
    np.testing.assert_allclose(scores.rank_histogram.sum("rank"), 1, rtol=1e-5)
    assert scores.rank_histogram.sizes["rank"] == 5


def test_another_climatology_regions_and_a_coarse_grid(truth, tmp_path):
    """WeatherBench 2's climatology, by hour and day of year; scores on both grids are of the same fields."""
    normal = truth[list(UNITS)].isel(time=slice(0, 4)).rename(time="hour").assign_coords(hour=[0, 6, 12, 18])
    normal = normal.expand_dims(dayofyear=np.arange(1, 367)).transpose("hour", "dayofyear", ...)
    store = write_zarr(normal, tmp_path / "climatology.zarr")
    forecast = make_forecast(truth)
    options = {"climatology": store, "regions": ["global", "northern-hemisphere_land"], "grids": ["native", "8x4"]}
    scores = score_forecasts({"f": forecast}, truth, **options, spectra=True)
    assert scores.rmse.dims == ("source", "grid", "region", "lead_hours", "channel")
    valid = forecast.time.values + np.timedelta64(6, "h")
    fields = [forecast["2m_temperature"].sel(prediction_timedelta=np.timedelta64(6, "h")).values]
    fields += [truth["2m_temperature"].sel(time=valid).values]
    fields += [normal["2m_temperature"].values[(valid.astype("datetime64[h]").astype(int) // 6) % 4, 0]]
    area = np.broadcast_to(area_weights(truth.latitude.values)[:, None], (8, 16))
    land = area * truth.land_sea_mask.values * (truth.latitude.values >= 20)[:, None]
    f, t = fields[0] - fields[2], fields[1] - fields[2]
    for region, weights in (("global", area), ("northern-hemisphere_land", land)):
        mean = lambda x, weights=weights: (x * weights).sum((1, 2)) / weights.sum()  # noqa: E731
        expected = (mean(f * t) / np.sqrt(mean(f**2) * mean(t**2))).mean()
        found = scores.acc.sel(source="f", grid="native", region=region, lead_hours=6, channel="2m_temperature")
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    coarse = [regrid(x, make_grid(8, 16), equiangular_grid(4, 8), method="conservative") for x in fields[:2]]
    expected = np.sqrt((area_weights(equiangular_grid(4, 8).latitude)[:, None] * (coarse[0] - coarse[1]) ** 2).mean())
    found = scores.rmse.sel(source="f", grid="8x4", region="global", lead_hours=6, channel="2m_temperature")
    np.testing.assert_allclose(found, expected, rtol=1e-2)  # xarray-regrid's weights are not exact
    assert {"spectrum", "spectrum_truth"} <= set(scores) and scores.spectrum.sizes["wavenumber"] == 9


@pytest.mark.slow
def test_an_archive_of_other_times_brings_its_climatology(truth, tmp_path, capsys):
    year, name = np.datetime64("2019-01-01", "ns") + np.arange(2 * 365) * np.timedelta64(12, "h"), "2m_temperature"
    dataset = make_dataset(times=year, lat=8, lon=16)[[name]]
    archive = prepare_archive(open_source(dataset, step_hours=12), tmp_path / "2019", climatology=True)
    options = dict(climatology=archive.path, lead_hours=[12])
    forecast = make_forecast(truth)[[name]]
    scores = score_forecasts({"f": forecast}, truth, **options)
    assert scores.attrs["climatology"].startswith("the archive's, by hour of day and day of year")
    assert np.isfinite(scores.acc.sel(source="f")).all() and not capsys.readouterr().out
    # of times that are scored it is left out, and one is fitted to the others
    scores = score_forecasts({"f": forecast.assign_coords(time=year[-11:-2])}, dataset, **options)
    assert scores.attrs["climatology"].startswith("mean of the training period by hour of day")
    assert "is also of times that are scored: one of other times takes its place" in capsys.readouterr().out


RAIN = "total_precipitation_6hr"


def plain_seeps(forecast, truth, heavy, share, weights, dry):
    """Rodwell et al.'s score as WeatherBench 2 computes it, point after point: (category, cost) from the definition."""
    total, area = 0.0, 0.0
    for place in np.ndindex(weights.shape):
        p = share[place]
        if not 0.1 < p < 0.85:
            continue
        cost = 0.5 * np.array(
            [[0, 1 / (1 - p), 4 / (1 - p)], [1 / p, 0, 3 / (1 - p)], [1 / p + 3 / (2 + p), 3 / (2 + p), 0]]
        )
        kinds = [0 if x[place] < dry else 1 if x[place] < heavy[place] else 2 for x in (forecast, truth)]
        known = not np.isnan(heavy[place])  # elsewhere what is not dry is of no kind, and costs nothing
        total, area = total + weights[place] * cost[*kinds] * known, area + weights[place]
    return total / area


@pytest.mark.parametrize(
    "rain_name, dry, shape",
    [
        ("total_precipitation_24hr", 2.5e-4, (1, 1, 1)),
        pytest.param(RAIN, 1e-4, (2, 2, 2), marks=pytest.mark.slow),
    ],
)
def test_seeps_of_precipitation_is_weatherbench_2s(rain_name, dry, shape):
    truth, random = make_truth(), np.random.default_rng(0)
    rain = lambda *size: (random.gamma(0.6, 2e-3, size) * (random.random(size) < 0.6)).astype(np.float32)  # noqa: E731
    truth[rain_name] = (("time", "latitude", "longitude"), rain(32, 8, 16), {"units": "m"})
    forecast = make_forecast(truth)
    forecast[rain_name] = (("time", "prediction_timedelta", "latitude", "longitude"), rain(9, 3, 8, 16), {"units": "m"})
    dims = ("hour", "dayofyear", "latitude", "longitude")
    climatology = truth.drop_vars("land_sea_mask").isel(time=0, drop=True)
    climatology = climatology.expand_dims(hour=[0, 6, 12, 18], dayofyear=range(1, 367))
    share = random.uniform(0, 1, (8, 16)) + random.uniform(-0.05, 0.05, (4, 366, 8, 16))
    climatology[f"{rain_name}_seeps_dry_fraction"] = (dims, share.astype(np.float32))
    heavy = random.uniform(1e-3, 4e-3, (4, 366, 8, 16)).astype(np.float32)
    climatology[f"{rain_name}_seeps_threshold"] = (dims, np.where(random.random(heavy.shape) < 1e-3, np.nan, heavy))
    flipped = climatology.transpose("hour", "dayofyear", ..., "longitude", "latitude").isel(
        latitude=slice(None, None, -1)
    )
    options = {"climatology": flipped, "mesh": make_mesh(*shape), "batch_size": 2, "seeps": True}
    scores = score_forecasts({"f": forecast}, truth, regions=["global", "tropics"], **options)
    assert np.isnan(scores.seeps.sel(channel="2m_temperature")).all()
    weights = np.broadcast_to(area_weights(truth.latitude.values)[:, None], (8, 16))
    inside = weights * (np.abs(truth.latitude.values) <= 20)[:, None]
    limits = climatology[f"{rain_name}_seeps_threshold"].values
    for lead_hours, of_lead in zip(LEADS, forecast[rain_name].transpose("prediction_timedelta", ...).values):
        valid = forecast.time.values + np.timedelta64(int(lead_hours), "h")
        targets = truth[rain_name].sel(time=valid).values
        heavy = [limits[t.dt.hour.item() // 6, t.dt.dayofyear.item() - 1] for t in xr.DataArray(valid, dims="t")]
        for region, of_region in (("global", weights), ("tropics", inside)):
            some = zip(of_lead, targets, heavy)
            expected = np.mean([plain_seeps(*one, share.mean((0, 1)), of_region, dry) for one in some])
            found = scores.seeps.sel(source="f", channel=rain_name, region=region, lead_hours=lead_hours)
            np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_seeps_is_refused_without_its_thresholds_or_precipitation(truth):
    forecast = make_forecast(truth)
    with pytest.raises(ValueError, match="seeps: none of total_precipitation_6hr, total_precipitation_24hr is scored"):
        score_forecasts({"f": forecast}, truth, seeps=True)
    rain = {RAIN: truth["2m_temperature"].assign_attrs(units="m")}
    wet, forecast = truth.assign(rain), forecast.assign({RAIN: forecast["2m_temperature"].assign_attrs(units="m")})
    with pytest.raises(ValueError, match=f"seeps: the climatology has no {RAIN}_seeps_threshold, .*give precip"):
        score_forecasts({"f": forecast}, wet, seeps=True)


def test_a_run_is_scored_beside_its_own_forecasts_from_a_file(tmp_path, capsys):
    truth = make_truth()
    archive = prepare_archive(open_source(truth), tmp_path / "archive", dtype="float32")
    run = make_run(tmp_path / "run", archive, CHANNELS, make_mesh(1, 1, 1), train=("2020-01-01", "2020-01-02"))
    file = run.forecast(starts=TIMES[10:20], hours=12)
    scores = score_forecasts({"file": file, "run": run}, archive, lead_hours=[6, 12], batch_size=4)
    for name in ("rmse", "bias", "mae"):
        one, other = (scores[name].sel(source=source) for source in ("file", "run"))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-3)
    assert "run: trained on leads up to 6 h: 12 h" in scores.attrs["notes"]
    write = tmp_path / "f.zarr"
    file.to_zarr(write)
    output = tmp_path / "out" / "scores.json"
    question = ["--truth", archive.path, "--leads=6", "--output", str(output), "--by=hour"]
    evaluate.main([f"--forecast=a={write},b={write}", *question])
    printed = capsys.readouterr().out
    assert "RMSE to a" in printed and "hour 0" in printed and "+0.0" in printed
    assert set(json.loads(output.read_text())["rmse"]["a"]) == {"0", "6", "12", "18"}
    with xr.open_dataset(output.with_suffix(".nc"), decode_timedelta=False) as found:
        assert found.rmse.dims == ("hour", "source", "lead_hours", "channel") and "squared_error" in found


def test_what_cannot_be_compared_is_named(truth, tmp_path):
    forecast = make_forecast(truth)
    with pytest.raises(ValueError, match=r"lead_hours=\[48\]: f has the leads \[6, 12, 24\]"):
        score_forecasts({"f": forecast}, truth, lead_hours=[6, 48])
    with pytest.raises(ValueError, match="mode=latent is for runs, .* there are none among f"):
        score_forecasts({"f": forecast}, truth, mode="latent")
    with pytest.raises(ValueError, match="no start that forecasts and truth have all: f 9 .2020-01-01T12"):
        score_forecasts({"f": forecast}, truth.isel(time=slice(24, None)))
    with pytest.raises(ValueError, match="no channel that truth and forecasts have all: the truth: geop"):
        score_forecasts({"f": forecast[["2m_temperature"]]}, truth[["geopotential"]])
    with pytest.raises(ValueError, match="on another grid"):
        score_forecasts({"f": forecast}, make_dataset(times=TIMES, lat=12, lon=16, levels=(500, 850)))
    with pytest.raises(ValueError, match="has no leads .prediction_timedelta, step"):
        open_forecast(write_zarr(truth, tmp_path / "t.zarr"))
    with pytest.raises(ValueError, match="region 'mars' is not known: choose among global, tropics"):
        score_forecasts({"f": forecast}, truth, regions=["mars"])
    with pytest.raises(ValueError, match="grid '1deg' is not known: give native"):
        score_forecasts({"f": forecast}, truth, grids=["1deg"])
