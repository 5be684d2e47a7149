"""Members are drawn from (seed, start, member, step) and nothing else, in memory and in files."""

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from tests.archives import make_archive, make_frames
from tests.forecasting.test_forecasts import CHANNELS, GRID, TIMES
from weathermixer.forecasting.ensembles import Members
from weathermixer.forecasting.files import ForecastWriter
from weathermixer.forecasting.forecasts import collect_forecast, describe_forecasts, make_forecast
from weathermixer.parallel.mesh import make_mesh

STARTS, MEMBERS, LEADS = np.array([1, 4]), 4, [1, 2]
ROWS = np.arange(len(STARTS) * MEMBERS)
PREDICTED = CHANNELS.predicted.astype(np.float32)[None, :, None, None]


def walk(params, x, *, noise, repeats=1):
    """A random walk: each step adds the sample's first number of noise."""
    return (x + params * noise[:, :1, None, None]) * PREDICTED


@pytest.fixture
def archive(tmp_path):
    fields = 270 + np.random.default_rng(0).normal(size=(6, 5, 8, 12)) * np.arange(1, 6)[:, None, None]
    return make_archive(tmp_path / "a", fields.astype(np.float32), times=TIMES, channel_set=CHANNELS)


def forecast(archive, rows=ROWS, *, mesh=(1, 1, 1), batch_size=2, noise=3, perturbation=0.0, seed=0, lead_steps=LEADS):
    frames = make_frames(archive, CHANNELS, make_mesh(*mesh))
    members = Members(ROWS % MEMBERS, noise, perturbation, seed).take(rows)
    options = dict(starts=STARTS[rows // MEMBERS], members=members, batch_size=batch_size, lead_steps=lead_steps)
    apply = walk if noise else lambda params, x, *, repeats=1: x * PREDICTED
    return make_forecast(apply, jnp.float32(1.0), frames, **options)


def describe(leads=LEADS):
    return describe_forecasts(TIMES[STARTS], [6 * lead for lead in leads], GRID, CHANNELS.dynamic, {}, MEMBERS)


def collect(forecasts, leads=LEADS):
    return collect_forecast(forecasts, describe(leads), CHANNELS.dynamic)


def test_members_depend_on_seed_start_member_and_step_alone(archive):
    found = collect(forecast(archive))
    temperature = found["2m_temperature"]
    assert temperature.dims == ("time", "number", "prediction_timedelta", "latitude", "longitude")
    assert found.number.values.tolist() == [1, 2, 3, 4] and found.number.standard_name == "realization"
    for options in (dict(batch_size=8), dict(mesh=(2, 2, 2)), dict(mesh=(4, 2, 1), batch_size=4)):
        other = collect(forecast(archive, **options))
        np.testing.assert_allclose(other["2m_temperature"], temperature, rtol=1e-6)
    steps = temperature.diff("prediction_timedelta").isel(latitude=0, longitude=0, prediction_timedelta=0)
    assert len(np.unique(np.round(steps, 3))) == 8  # every member of every start goes its own way
    assert not np.allclose(collect(forecast(archive, seed=1))["2m_temperature"], temperature)


def test_starts_are_perturbed_on_predicted_channels_by_parts_of_their_deviations(archive):
    leads = [0, 1]
    still = collect(forecast(archive, noise=0, perturbation=1e-9, lead_steps=leads), leads)
    found = collect(forecast(archive, noise=0, perturbation=0.1, lead_steps=leads), leads)
    for channel in CHANNELS.dynamic:
        both = (d[channel.variable] for d in (found, still))
        moved = np.subtract(*(v.sel(level=channel.level_hpa) if channel.level_hpa else v for v in both))
        std = archive.statistics.std[archive.channel_indices([channel.name])[0]]
        assert moved.std(("latitude", "longitude")).values / std == pytest.approx(0.1, rel=0.4)
        assert abs(float(moved.mean())) < 0.02 * std
    whole = collect(forecast(archive, noise=0, perturbation=0.1, lead_steps=leads, mesh=(2, 2, 2)), leads)
    xr.testing.assert_allclose(whole, found, rtol=1e-6)


def test_an_ensemble_that_was_stopped_goes_on_after_its_finished_members(archive, tmp_path):
    path = tmp_path / "f.zarr"

    def open_writer():
        return ForecastWriter(path, describe(), CHANNELS.dynamic, rows=8, maker="a test")

    open_writer().write(forecast(archive, ROWS[:6]), ROWS[:6])
    writer = open_writer()
    assert writer.unfinished.tolist() == [6, 7]
    writer.write(forecast(archive, writer.unfinished), writer.unfinished)
    with writer.publish() as written:
        xr.testing.assert_identical(written.load().drop_encoding(), collect(forecast(archive)).drop_encoding())


def test_members_that_would_be_the_same_are_refused():
    with pytest.raises(ValueError, match="all members would be the same"):
        Members(np.arange(2), noise=0, perturbation=0.0, seed=0)
    with pytest.raises(ValueError, match="0 members"):
        Members(np.arange(0), noise=2, perturbation=0.0, seed=0)
