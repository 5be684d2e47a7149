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
from weathermixer.forecasting.rollout import model_forecaster
from weathermixer.parallel.mesh import make_mesh, use_mesh

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


def forecast(
    archive,
    rows=ROWS,
    *,
    mesh=(1, 1, 1),
    batch_size=2,
    noise=3,
    perturbation=0.0,
    seed=0,
    kind="white",
    lead_steps=LEADS,
):
    frames = make_frames(archive, CHANNELS, make_mesh(*mesh))
    members = Members(ROWS % MEMBERS, noise, perturbation, seed, kind, 3000.0).take(rows)
    apply = walk if noise else lambda params, x, *, repeats=1: x * PREDICTED
    lead_hours = [6 * steps for steps in lead_steps if steps]
    model = model_forecaster(apply, jnp.float32(1.0), frames, lead_hours=lead_hours)
    options = dict(starts=STARTS[rows // MEMBERS], members=members, batch_size=batch_size, analysis=0 in lead_steps)
    return make_forecast(model, frames, **options)


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


def add_to_starts(archive, members, starts, mesh=(1, 1, 1)):
    """[start, n, lat, lon], what is added to the standardized starts of an ensemble; and the starts."""
    frames = make_frames(archive, CHANNELS, make_mesh(*mesh))
    with use_mesh(frames.mesh):
        state = frames.read(starts)
        begun, _ = members.begin(frames, state, frames.times[starts])
        return np.asarray(begun) - np.asarray(state), np.asarray(state)


def test_smooth_noise_has_deviation_one_and_its_correlation_on_all_of_the_sphere(archive):
    members = Members(np.arange(64), 0, 0.1, 0, "smooth", 3000.0)
    found, _ = add_to_starts(archive, members, np.full(64, 2))
    assert not found[:, 5].any()  # padding
    fields = found[:, :5].reshape(-1, 8 * 12) / 0.1
    assert abs(fields.mean()) < 0.05
    lat, lon = np.deg2rad(GRID.latitude)[:, None], np.deg2rad(GRID.longitude)
    apart = np.sin(lat / 2 - lat.T / 2) ** 2
    apart = apart[:, None, :, None] + (
        np.cos(lat)[:, None, None] * np.cos(lat).T[None, :, :, None] * np.sin((lon[:, None, None] - lon) / 2) ** 2
    )
    wanted = np.exp(-0.5 * (2 * np.sqrt(apart) * 6371 / 3000) ** 2).reshape(96, 96)
    difference = fields.T @ fields / len(fields) - wanted
    assert abs(np.diag(difference).mean()) < 0.05 and np.abs(difference).mean() < 0.06
    for low, high in ((0.1, 0.5), (0.5, 0.9)):
        assert abs(difference[(wanted > low) & (wanted < high)].mean()) < 0.05
    assert np.abs(np.corrcoef(found[:, :5].swapaxes(0, 1).reshape(5, -1)) - np.eye(5)).max() < 0.15


def test_starts_are_perturbed_by_differences_of_analyses_at_their_hour(archive):
    """Of six times each hour has two at most: a member gets their difference, or its opposite."""
    found, _ = add_to_starts(archive, Members(ROWS % MEMBERS, 0, 0.1, 0, "analyses"), STARTS[ROWS // MEMBERS])
    frames = make_frames(archive, CHANNELS, make_mesh(1, 1, 1))
    with use_mesh(frames.mesh):
        fields = np.asarray(frames.read(np.array([1, 5, 0, 4])))
    signs = []
    for row, pattern in zip(found, np.repeat([fields[0] - fields[1], fields[2] - fields[3]], MEMBERS, axis=0)):
        sign = np.sign(np.sum(row * pattern))
        np.testing.assert_allclose(row, sign * 0.1 * pattern / np.sqrt(2), atol=2e-5)
        signs.append(sign)
    assert set(signs) == {-1, 1}


def test_where_an_analysis_lacks_values_nothing_is_added(tmp_path):
    fields = 270 + np.random.default_rng(0).normal(size=(6, 5, 8, 12)).astype(np.float32)
    fields[5, 0, :2] = np.nan
    archive = make_archive(tmp_path / "a", fields, times=TIMES, channel_set=CHANNELS)
    found, state = add_to_starts(archive, Members(np.arange(2), 0, 0.1, 0, "analyses"), np.array([1, 1]))
    assert np.isfinite(state).all() and not found[:, 0, :2].any() and found[:, 0, 2:].all()


@pytest.mark.parametrize("kind", ["smooth", "analyses"])
def test_perturbations_depend_on_seed_start_and_member_alone(archive, kind):
    options = dict(noise=0, perturbation=0.1, kind=kind, lead_steps=[0, 1])
    found = collect(forecast(archive, **options), [0, 1])
    for other in (dict(mesh=(2, 2, 2), batch_size=4), dict(batch_size=8)):
        xr.testing.assert_allclose(collect(forecast(archive, **options, **other), [0, 1]), found, rtol=1e-6)
    for name, field in found.items():
        assert not np.allclose(collect(forecast(archive, **options, seed=3), [0, 1])[name], field)


def test_starts_that_the_data_cannot_give_are_refused(archive, tmp_path):
    frames = make_frames(archive, CHANNELS, make_mesh(1, 1, 1))
    differences, lagged = (Members(np.arange(3), 0, a, 0, kind) for a, kind in ((0.1, "analyses"), (0.0, "lagged")))
    with pytest.raises(ValueError, match="has 1 analyses .* season of 2020-12-01T12.* perturbation_kind='smooth'"):
        differences.find_origins(frames, TIMES[[1, 1, 2]], step_hours=6)
    assert lagged.find_origins(frames, TIMES[[2, 2, 2]], step_hours=6).tolist() == TIMES[[2, 1, 0]].tolist()
    with pytest.raises(
        ValueError, match="lacks 2020-11-30T18, where a lagged member of 2020-12-01T06 begins: give fewer"
    ):
        lagged.find_origins(frames, TIMES[[1, 1, 1]], step_hours=6)
    year = np.array(["2020-01-03", "2020-07-01", "2020-12-10"], "datetime64[ns]")
    fields = np.random.default_rng(0).normal(size=(3, 5, 8, 12)).astype(np.float32)
    other = make_archive(tmp_path / "b", fields, times=year, channel_set=CHANNELS)
    seasons = make_frames(other, CHANNELS, make_mesh(1, 1, 1))
    found = differences.find_origins(seasons, year[[0, 0, 2]], step_hours=6)
    assert found.tolist() == year[[0, 0, 2]].tolist()
    with pytest.raises(ValueError, match="has 1 analyses at the hour and in the season of 2020-07-01T00"):
        differences.find_origins(seasons, year[[1, 1, 1]], step_hours=6)


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
    for kind, perturbation in (("lagged", 0.1), ("smooth", 0.0), ("analyses", 0.0)):
        with pytest.raises(ValueError, match=f"perturbation_kind='{kind}' with perturbation={perturbation}: lagged"):
            Members(np.arange(2), 2, perturbation, 0, kind)
    with pytest.raises(ValueError, match="perturbation_kind='red' is not one of"):
        Members(np.arange(2), 2, 0.1, 0, "red")
    with pytest.raises(ValueError, match="correlation_km=0.0: 1 and 0 are the least, and the length is above 0"):
        Members(np.arange(2), 2, 0.1, 0, "smooth", 0.0)
