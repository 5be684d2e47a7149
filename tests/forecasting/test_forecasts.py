"""Forecast files hold what the model said, in WeatherBench 2's form, whole or not at all."""

import itertools
import pathlib
import shutil
import subprocess
import sys
import textwrap
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from tests.archives import make_archive, make_frames, make_grid
from weathermixer.fields.variables import ChannelSet
from weathermixer.forecasting.files import ForecastWriter, check_output
from weathermixer.forecasting.forecasts import collect_forecast, describe_forecasts, make_forecast
from weathermixer.forecasting.rollout import model_forecaster
from weathermixer.parallel.mesh import make_mesh, sharding

# levels descend, as in the published order; files have them ascend
CHANNELS = ChannelSet.from_names(
    ["2m_temperature", "geopotential_850", "geopotential_500", "temperature_850", "temperature_500"], multiple=6
)
GRID = make_grid(8, 12)
TIMES = np.datetime64("2020-12-01T00", "ns") + np.arange(6) * np.timedelta64(6, "h")
LEADS = [6, 12, 18]


def make_fields(starts=2, value=0.0):
    return np.random.default_rng(0).normal(size=(starts, len(LEADS), 5, 8, 12)).astype(np.float32) + value


def stream(fields, mesh_shape=(1, 1, 1), channels=CHANNELS, batch=1):
    """Forecasts as the model yields them: on a mesh, padded to the channels' multiple and to whole batches."""
    cut = sharding(make_mesh(*mesh_shape), "batch", "channel", "lat", "lon")
    for first in range(0, len(fields), batch):
        some = fields[first : first + batch]
        padding = ((0, batch - len(some)), (0, channels.size - some.shape[2]), (0, 0), (0, 0))
        for lead in range(some.shape[1]):
            yield np.arange(first, first + len(some)), lead, jax.device_put(np.pad(some[:, lead], padding), cut)


def describe(starts=2, channels=CHANNELS):
    return describe_forecasts(TIMES[:starts], LEADS, GRID, channels.dynamic, {"comment": "a test"})


def write(path, fields, *, channels=CHANNELS, rows=8, forecasts=None, **options):
    writer = ForecastWriter(path, describe(len(fields), channels), channels.dynamic, rows=rows, maker="a test")
    writer.write(forecasts or stream(fields, channels=channels, **options), writer.unfinished)
    writer.publish().close()


def read(path):
    # decoding of lead times is announced to become explicit: ours says its type and opens without a warning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return xr.open_zarr(path, chunks=None) if path.suffix == ".zarr" else xr.open_dataset(path)


def assert_same(forecast, fields, channels=CHANNELS):
    for index, channel in enumerate(channels.dynamic):
        variable = forecast[channel.variable]
        found = variable if channel.level_hpa is None else variable.sel(level=channel.level_hpa)
        np.testing.assert_array_equal(found, fields[:, :, index])
        assert (variable.units, variable.dtype) == (channel.units, np.float32)


@pytest.mark.parametrize(
    ("ending", "mesh_shape", "batch"), [(".zarr", (1, 1, 1), 1), (".nc", (1, 1, 1), 2), (".zarr", (2, 2, 2), 2)]
)
def test_a_forecast_round_trips_in_weatherbench2s_form(tmp_path, ending, mesh_shape, batch):
    fields = make_fields(3)
    path = tmp_path / f"f{ending}"
    write(path, fields, mesh_shape=mesh_shape, batch=batch, rows=8 // mesh_shape[1])
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    in_memory = collect_forecast(stream(fields, mesh_shape, batch=batch), describe(3), CHANNELS.dynamic)
    with read(path) as forecast:
        xr.testing.assert_identical(forecast.load().drop_encoding(), in_memory.drop_encoding())
        assert forecast.geopotential.dims == ("time", "prediction_timedelta", "level", "latitude", "longitude")
        assert forecast["2m_temperature"].dims == ("time", "prediction_timedelta", "latitude", "longitude")
        np.testing.assert_array_equal(forecast.time, TIMES[:3])
        np.testing.assert_array_equal(forecast.prediction_timedelta, np.array(LEADS, "timedelta64[h]"))
        np.testing.assert_array_equal(forecast.level, [500, 850])
        np.testing.assert_array_equal(forecast.latitude, GRID.latitude)
        np.testing.assert_array_equal(forecast.longitude, GRID.longitude)
        assert_same(forecast, fields)
        assert forecast.temperature.standard_name == "air_temperature"
        assert forecast.time.standard_name == "forecast_reference_time"
        assert forecast.attrs["Conventions"].startswith("CF-") and forecast.attrs["comment"] == "a test"


@pytest.mark.parametrize("ending", [".zarr", ".nc"])
def test_variables_on_different_levels_are_missing_where_the_model_has_none(tmp_path, ending):
    channels = ChannelSet.from_names(
        ["2m_temperature", "geopotential_500", "u_component_of_wind_850", "u_component_of_wind_500", "temperature_850"]
    )
    fields = make_fields()
    write(tmp_path / f"f{ending}", fields, channels=channels)
    with read(tmp_path / f"f{ending}") as forecast:
        assert_same(forecast, fields, channels)
        np.testing.assert_array_equal(forecast.level, [500, 850])
        assert (
            np.isnan(forecast.geopotential.sel(level=850)).all() and np.isnan(forecast.temperature.sel(level=500)).all()
        )


@pytest.mark.parametrize("ending", [".zarr", ".nc"])
def test_a_broken_run_leaves_the_old_file_and_the_next_one_replaces_it(tmp_path, ending):
    path = tmp_path / f"f{ending}"
    fields = make_fields()
    write(path, fields)

    def broken(forecasts, after):
        yield from itertools.islice(forecasts, after)
        raise RuntimeError("out of memory")

    fields_new = make_fields(value=5.0)
    with pytest.raises(RuntimeError, match="out of memory"):
        write(path, fields_new, forecasts=broken(stream(fields_new), 1))
    with read(path) as forecast:
        assert_same(forecast, fields)
    write(path, fields_new)
    with read(path) as forecast:
        assert_same(forecast, fields_new)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_forecasts_that_were_stopped_go_on_after_the_starts_that_are_finished(tmp_path):
    """kill -9 in the last frame, with four on their way: the first start is not made again, the others are."""
    program = """
        import os, sys
        from tests.forecasting.test_forecasts import *
        def killed(forecasts):
            for starts, lead, fields in forecasts:
                if (starts[0], lead) == (2, 2):
                    print("killed", flush=True)
                    os.kill(os.getpid(), 9)
                yield starts, lead, fields
        fields = make_fields(3)
        write(pathlib.Path(sys.argv[1]), fields, forecasts=killed(stream(fields)))
    """
    path = tmp_path / "f.zarr"
    command = [sys.executable, "-c", textwrap.dedent(program), str(path)]
    killed = subprocess.run(command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[2])
    assert killed.returncode == -9 and killed.stdout == "killed\n", killed.stderr
    assert not path.exists()
    fields = make_fields(3)
    other = ForecastWriter(path, describe(3), CHANNELS.dynamic, rows=8, maker="a test")
    assert other.unfinished.tolist() == [1, 2]
    other.write(stream(fields[other.unfinished]), other.unfinished)
    other.publish().close()
    with read(path) as forecast:
        assert_same(forecast, fields)


def test_another_maker_or_other_starts_begin_afresh(tmp_path):
    path, fields = tmp_path / "f.zarr", make_fields(3)

    def open_writer(starts=3, maker="a test"):
        return ForecastWriter(path, describe(starts), CHANNELS.dynamic, rows=8, maker=maker)

    open_writer().write(stream(fields[:1]), np.array([0]))
    assert open_writer().unfinished.tolist() == [1, 2]
    assert open_writer(maker="another").unfinished.tolist() == [0, 1, 2]
    assert open_writer().unfinished.tolist() == [0, 1, 2]  # the other has taken its place
    assert open_writer(starts=2).unfinished.tolist() == [0, 1]


def test_a_disk_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "f.zarr"
    writer = ForecastWriter(path, describe(), CHANNELS.dynamic, rows=8, maker="a test")
    shutil.rmtree(tmp_path / "f.zarr.partial" / "geopotential")
    (tmp_path / "f.zarr.partial" / "geopotential").write_text("a file where a folder should be")
    with pytest.raises(ValueError, match=r"f.zarr.partial cannot be written: .*\nfinished forecasts are kept"):
        writer.write(stream(make_fields()), writer.unfinished)


@pytest.mark.parametrize("path", ["forecast.grib", "forecast", "gs://bucket/forecast.zarr"])
def test_outputs_that_cannot_be_written_are_refused(path):
    with pytest.raises(ValueError, match=r"output=.*"):
        check_output(path)


@pytest.mark.parametrize(("shape", "batch_size"), [((1, 1, 1), 1), ((2, 2, 2), 2)])
def test_frames_are_the_models_states_in_physical_units(tmp_path, shape, batch_size):
    random = np.random.default_rng(0)
    fields = random.normal(size=(6, 5, 8, 12)) * [[[[3.0]], [[900.0]], [[500.0]], [[2.0]], [[5.0]]]] + 270
    archive = make_archive(tmp_path / "a", fields.astype(np.float32), times=TIMES, channel_set=CHANNELS)
    mesh = make_mesh(*shape)

    def shift(params, x, *, repeats=1, key=None):
        return (x + repeats * params) * CHANNELS.predicted.astype(np.float32)[None, :, None, None]

    found = np.full((3, 4, 5, 8, 12), np.nan)
    frames, options = make_frames(archive, CHANNELS, mesh), {"batch_size": batch_size, "analysis": True}
    model = model_forecaster(shift, jnp.float32(0.5), frames, lead_hours=LEADS)
    for starts, lead, values in make_forecast(model, frames, starts=np.array([1, 4, 5]), **options):
        assert np.isnan(found[starts, lead]).all()
        found[starts, lead] = np.asarray(values)[: len(starts), :5]
    std = archive.statistics.std[:, None, None]
    for lead in range(4):
        np.testing.assert_allclose(found[:, lead], fields[[1, 4, 5]] + 0.5 * lead * std, rtol=2e-6, atol=2e-3)
