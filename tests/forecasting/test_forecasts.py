"""Forecast files hold what the model said, in WeatherBench 2's form, whole or not at all."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from tests.archives import make_archive, make_grid
from weathermixer.archive.standardization import make_standardization
from weathermixer.fields.variables import ChannelSet
from weathermixer.forecasting.forecasts import make_forecast, write_forecast
from weathermixer.parallel.mesh import make_mesh

# levels descend, as in the published order; files have them ascend
CHANNELS = ChannelSet.make(["2m_temperature"], ["geopotential", "temperature"], [850, 500], multiple=6)
GRID = make_grid(8, 12)
TIMES = np.datetime64("2020-12-01T00", "ns") + np.arange(6) * np.timedelta64(6, "h")
LEADS = [6, 12, 18]


def frames(starts=2, value=0.0):
    fields = np.random.default_rng(0).normal(size=(starts, len(LEADS), 5, 8, 12)).astype(np.float32) + value
    return fields, ((np.array([start]), lead, fields[[start], lead]) for start in range(starts) for lead in range(3))


def write(path, frames, *, starts=2):
    about = {"comment": "a test"}
    write_forecast(
        path, frames, times=TIMES[:starts], lead_hours=LEADS, grid=GRID, channels=CHANNELS.dynamic, attributes=about
    )


def read(path):
    # decoding of lead times is announced to become explicit: ours says its type and opens without a warning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return xr.open_zarr(path, chunks=None) if path.suffix == ".zarr" else xr.open_dataset(path)


@pytest.mark.parametrize("ending", [".zarr", ".nc"])
def test_a_forecast_round_trips_in_weatherbench2s_form(tmp_path, ending):
    fields, stream = frames()
    write(tmp_path / f"f{ending}", stream)
    assert [entry.name for entry in tmp_path.iterdir()] == [f"f{ending}"]
    with read(tmp_path / f"f{ending}") as forecast:
        assert forecast.geopotential.dims == ("time", "prediction_timedelta", "level", "latitude", "longitude")
        assert forecast["2m_temperature"].dims == ("time", "prediction_timedelta", "latitude", "longitude")
        np.testing.assert_array_equal(forecast.time, TIMES[:2])
        np.testing.assert_array_equal(forecast.prediction_timedelta, np.array(LEADS, "timedelta64[h]"))
        np.testing.assert_array_equal(forecast.level, [500, 850])
        np.testing.assert_array_equal(forecast.latitude, GRID.latitude)
        np.testing.assert_array_equal(forecast.longitude, GRID.longitude)
        for index, channel in enumerate(CHANNELS.dynamic):
            variable = forecast[channel.variable]
            found = variable if channel.level_hpa is None else variable.sel(level=channel.level_hpa)
            np.testing.assert_array_equal(found, fields[:, :, index])
            assert (variable.units, variable.dtype) == (channel.units, np.float32)
        assert forecast.temperature.standard_name == "air_temperature"
        assert forecast.time.standard_name == "forecast_reference_time"
        assert forecast.attrs["Conventions"].startswith("CF-") and forecast.attrs["comment"] == "a test"


@pytest.mark.parametrize("ending", [".zarr", ".nc"])
def test_a_broken_run_leaves_the_old_file_and_the_next_one_replaces_it(tmp_path, ending):
    path = tmp_path / f"f{ending}"
    fields, stream = frames()
    write(path, stream)

    def broken():
        yield next(frames(value=5.0)[1])
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        write(path, broken())
    with read(path) as forecast:
        np.testing.assert_array_equal(forecast["2m_temperature"], fields[:, :, 0])
    fields, stream = frames(value=7.0)
    write(path, stream)
    with read(path) as forecast:
        np.testing.assert_array_equal(forecast["2m_temperature"], fields[:, :, 0])
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("path", ["forecast.grib", "forecast", "gs://bucket/forecast.zarr"])
def test_outputs_that_cannot_be_written_are_refused_before_the_forecast_runs(path):
    def untouched():
        raise AssertionError("the forecast was run")
        yield

    with pytest.raises(ValueError, match=r"output=.*"):
        write(path, untouched())


def test_variables_on_different_levels_are_refused(tmp_path):
    channels = ChannelSet.from_names(["geopotential_500", "geopotential_850", "temperature_850"])
    with pytest.raises(ValueError, match=r"temperature is on levels \[850\]"):
        write_forecast(
            tmp_path / "f.zarr",
            iter(()),
            times=TIMES[:1],
            lead_hours=LEADS,
            grid=GRID,
            channels=channels.dynamic,
            attributes={},
        )


@pytest.mark.parametrize(("shape", "batch_size"), [((1, 1, 1), 1), ((2, 2, 2), 2)])
def test_frames_are_the_models_states_in_physical_units(tmp_path, shape, batch_size):
    random = np.random.default_rng(0)
    fields = random.normal(size=(6, 5, 8, 12)) * [[[[3.0]], [[900.0]], [[500.0]], [[2.0]], [[5.0]]]] + 270
    archive = make_archive(tmp_path / "a", fields.astype(np.float32), times=TIMES, channel_set=CHANNELS)
    mesh = make_mesh(*shape)

    def shift(params, x, *, repeats=1, key=None):
        return (x + repeats * params) * CHANNELS.predicted.astype(np.float32)[None, :, None, None]

    found = np.full((3, 3, 5, 8, 12), np.nan)
    for starts, lead, values in make_forecast(
        shift,
        jnp.float32(0.5),
        archive,
        CHANNELS,
        make_standardization(archive, CHANNELS, mesh),
        mesh,
        starts=np.array([1, 4, 5]),
        lead_steps=[1, 2, 3],
        batch_size=batch_size,
    ):
        assert np.isnan(found[starts, lead]).all()
        found[starts, lead] = values
    std = archive.statistics.std[:, None, None]
    for lead in range(3):
        np.testing.assert_allclose(found[:, lead], fields[[1, 4, 5]] + 0.5 * (lead + 1) * std, rtol=2e-6, atol=2e-3)


def test_a_forecast_needs_a_start(tmp_path):
    fields = np.random.default_rng(0).normal(size=(6, 5, 8, 12)).astype(np.float32)
    archive = make_archive(tmp_path / "a", fields, times=TIMES, channel_set=CHANNELS)
    mesh = make_mesh(1, 1, 1)
    standardization = make_standardization(archive, CHANNELS, mesh)
    with pytest.raises(ValueError, match="no start"):
        next(
            make_forecast(
                print, None, archive, CHANNELS, standardization, mesh, starts=np.arange(0), lead_steps=[1], batch_size=1
            )
        )
