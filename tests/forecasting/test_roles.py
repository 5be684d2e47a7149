"""Channels with roles and missing values from an archive through forecasts and scores, against plain numpy."""

import logging

import jax.numpy as jnp
import numpy as np
import pytest

from tests.archives import make_archive, make_grid
from tests.fields.test_forcings import fields as forcing_fields
from weathermixer.archive.frames import archive_frames
from weathermixer.archive.reference import describe_roles, make_reference
from weathermixer.fields.grid import area_weights
from weathermixer.fields.variables import ChannelSet
from weathermixer.forecasting.forecasts import make_forecast
from weathermixer.forecasting.rollout import model_forecaster, tell_what_is_held
from weathermixer.parallel.mesh import make_mesh, spec, use_mesh
from weathermixer.verification.climatologies import make_climatology
from weathermixer.verification.evaluation import evaluate

STATE, SEA, RAIN, ICE, LAND, SUN = range(6)
CHANNELS = ChannelSet.from_names(
    ["2m_temperature", "sea_ice_cover", "sea_surface_temperature", "total_precipitation_6hr"],
    ["land_sea_mask"],
    multiple=8,
    input_only=["sea_ice_cover"],
    output_only=["total_precipitation_6hr"],
    forcings=["insolation"],
)
HOURS = np.setdiff1d(np.arange(30), [25]) * 6  # one time is missing
TIMES = np.datetime64("2020-03-01T00", "ns") + HOURS * np.timedelta64(1, "h")
GRID = make_grid(8, 16)
LAND_MASK = np.random.default_rng(1).random(GRID.shape) < 0.3
FILL = {"sea_surface_temperature": 273.15}
CUT = spec("batch", "channel", "lat", "lon")
STARTS, LEADS = np.arange(20, 27), (6, 18)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    random = np.random.default_rng(0)
    values = np.cumsum(random.normal(size=(len(TIMES), 4, *GRID.shape)), axis=0) * 0.2
    values = values * np.array([9.0, 4.0, 0.01, 0.2])[:, None, None] + np.array([280.0, 290, 0.02, 0.5])[:, None, None]
    values[:, [SEA, ICE]] = np.where(LAND_MASK, np.nan, values[:, [SEA, ICE]])
    values[24, SEA, :4] = np.nan  # a mask that changes
    path = tmp_path_factory.mktemp("roles") / "archive"
    static = {"land_sea_mask": LAND_MASK.astype(np.float32)}
    return make_archive(path, values.astype(np.float32), times=TIMES, channel_set=CHANNELS, static=static)


def open_frames(archive, mesh, **options):
    return archive_frames(archive, make_reference(archive, CHANNELS, **options), mesh)


def apply(params, x, *, repeats=1, key=None):
    """Each state is 0.9 of itself, 0.1 of ice and sun; rain is ice + land (+ rain, which is not shown): NaN spreads."""
    mixing = np.zeros((CHANNELS.size, CHANNELS.size), np.float32)
    mixing[[STATE, SEA], [STATE, SEA]] = 0.9
    mixing[:RAIN, [ICE, SUN]] = 0.1
    mixing[RAIN, [RAIN, ICE, LAND]] = 1
    return jnp.einsum("oc,bclw->bolw", mixing, x, precision="highest", out_sharding=CUT)


def expected_forecast(archive, start, steps, *, prescribed):
    """The same in numpy, in SI units."""
    stored = np.asarray(archive.store.read().result(), np.float64)
    mean, std = (getattr(archive.statistics, name)[:, None, None] for name in ("mean", "std"))
    land = (LAND_MASK - LAND_MASK.mean()) / LAND_MASK.std()
    fill = (np.array([0, FILL["sea_surface_temperature"], 0, 0])[:, None, None] - mean) / std
    begin = (stored[start] - mean) / std
    state = begin
    for step in range(steps):
        when = TIMES[start] + step * np.timedelta64(6, "h")
        there = np.searchsorted(TIMES, when, "right") - 1 if prescribed == "analysis" else start
        ice = (stored[there] - mean)[ICE] / std[ICE]
        ice = np.where(np.isfinite(ice), ice, 0)
        x = np.where(np.isfinite(state), state, np.where(np.arange(4)[:, None, None] == SEA, fill, 0))
        sun = forcing_fields(["insolation"], np.array([when]), GRID)[0, 0]
        state = 0.9 * x + 0.1 * (ice + sun)
        state[RAIN] = ice + land
        state[:ICE] = np.where(np.isfinite(begin[:ICE]), state[:ICE], np.nan)
    return (state * std + mean)[:ICE]


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 2, 4)])
@pytest.mark.parametrize("prescribed", ["analysis", "hold"])
def test_forecasts_pass_through_what_each_role_asks_for(archive, sizes, prescribed, caplog):
    mesh = make_mesh(*sizes)
    frames = open_frames(archive, mesh, fill_values=FILL)
    found = np.full((len(STARTS), 2, 3, *GRID.shape), 9.9)
    model = model_forecaster(apply, {}, frames, lead_hours=[6, 24], prescribed=prescribed)
    for starts, lead, values in make_forecast(model, frames, starts=STARTS, batch_size=3):
        found[starts, lead] = np.asarray(values)[: len(starts), :ICE]
    for row, start in enumerate(STARTS):
        for lead, steps in enumerate((1, 4)):
            expected = expected_forecast(archive, start, steps, prescribed=prescribed)
            np.testing.assert_allclose(found[row, lead], expected, rtol=1e-5, atol=1e-8, equal_nan=True)
    tell_what_is_held(frames, STARTS, last_step=4, prescribed=prescribed)
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    if prescribed == "hold":
        assert not told
    else:  # the time that is missing, and what is beyond the end
        line = "lacks 2 of the 10 times that forecasts pass, the first 2020-03-07T06: sea_ice_cover stay"
        assert len(told) == 1 and line in told[0]


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 2, 2)])
def test_scores_count_points_that_all_sources_have(archive, sizes):
    mesh = make_mesh(*sizes)
    frames = open_frames(archive, mesh, fill_values=FILL)
    climatology = make_climatology(frames, indices=np.arange(16), batch_size=4)
    options = {"starts": STARTS, "lead_hours": LEADS, "batch_size": 2, "climatology": climatology}
    scores = evaluate({"model": model_forecaster(apply, {}, frames, lead_hours=LEADS)}, frames, **options)
    stored = np.asarray(archive.store.read().result(), np.float64)
    normal = {h: stored[:16][HOURS[:16] % 24 == h].mean(axis=0) for h in (0, 6, 12, 18)}
    area = np.broadcast_to(area_weights(GRID.latitude)[:, None], GRID.shape)
    for position, lead in enumerate(LEADS):
        errors = []
        for start in STARTS:
            target = np.flatnonzero(HOURS[start] + lead == HOURS)
            if not len(target):
                continue
            truth = stored[target[0], :ICE]
            model = expected_forecast(archive, start, lead // 6, prescribed="analysis")
            sources = np.stack([model, stored[start, :ICE], normal[HOURS[target[0]] % 24][:ICE]])
            error = sources - truth
            use = np.isfinite(error).all(axis=0)
            weights = np.where(use, area, 0)
            errors.append(np.sum(np.where(use, error, 0) ** 2 * weights, axis=(2, 3)) / weights.sum(axis=(1, 2)))
        expected = np.sqrt(np.mean(errors, axis=0))
        np.testing.assert_allclose(scores.rmse.isel(lead_hours=position), expected, rtol=1e-4)
        assert int(scores.samples[position]) == len(errors)
    assert scores.channel.values.tolist() == [*CHANNELS.names]


def test_the_log_tells_of_roles_and_of_what_is_filled(archive):
    lines = describe_roles(make_reference(archive, CHANNELS, fill_values=FILL))
    assert lines[:3] == ["input only: sea_ice_cover", "output only: total_precipitation_6hr", "forcings: insolation"]
    assert lines[3].startswith("sea_surface_temperature lacks values: the input has 273.15 K there")
    assert lines[4].startswith("sea_ice_cover lacks values: the input has 0.496461 there") and len(lines) == 5
    with pytest.raises(ValueError, match=r"2m_temperature lacks no values in .*, but \['sea_surface_temperature', "):
        make_reference(archive, CHANNELS, fill_values={"2m_temperature": 0.0})


def test_values_that_should_be_there_are_missed_by_name(archive):
    reference = make_reference(archive, CHANNELS)
    object.__setattr__(reference, "fill", np.full(4, np.nan))
    frames = archive_frames(archive, reference, make_mesh(1, 1, 1))
    with use_mesh(frames.mesh), pytest.raises(ValueError, match="sea_surface_temperature at 2020-03-01T12:00 has"):
        frames.read(np.array([2]))
