"""The sun helps: a temperature that follows it, under weather that dies away, is forecast better than without."""

import jax
import numpy as np
import pytest

from experiments.configs import base
from tests.archives import make_archive, make_frames, make_grid
from weathermixer.archive.loader import Batches
from weathermixer.archive.sampling import valid_starts
from weathermixer.fields.forcings import sun
from weathermixer.fields.variables import ChannelSet
from weathermixer.forecasting.rollout import model_forecaster
from weathermixer.parallel.mesh import make_mesh, use_mesh
from weathermixer.runs import build
from weathermixer.runs.settings import make_settings
from weathermixer.verification.climatologies import make_climatology
from weathermixer.verification.evaluation import evaluate

GRID = make_grid(8, 16)
TIMES = np.datetime64("2001-01-01T00", "ns") + np.arange(600) * np.timedelta64(6, "h")
STEPS = 120


def follow_the_sun(seed=0):
    """[time, 1, lat, lon] of dT/dt = a sun(t) - (T - 270 K) / 12 h, and weather that halves in 12 h."""
    hours = np.arange(-48, 6 * len(TIMES)) * np.timedelta64(1, "h")
    direction, _ = sun(TIMES[0] + hours)
    lat, lon = np.deg2rad(GRID.latitude)[:, None], np.deg2rad(GRID.longitude)
    place = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat) + 0 * lon])
    warmth, fields = np.zeros(GRID.shape), []
    for vector in direction:
        warmth += 4 * np.maximum(0, np.tensordot(vector, place, 1)) - warmth / 12
        fields.append(warmth)
        warmth = warmth.copy()
    random = np.random.default_rng(seed)
    weather, anomalies = np.zeros(GRID.shape), []
    for _ in TIMES:
        weather = 0.7 * weather + random.normal(size=GRID.shape)
        anomalies.append(weather)
    return (270 + np.stack(fields)[48::6] + np.stack(anomalies))[:, None].astype(np.float32)


def train(archive, *forcings):
    """(last losses, RMSE at 24 h of model, persistence and climatology) of a small model that trained STEPS steps."""
    config = base.get_config()
    config.data.update(static=(), forcings=forcings, channels=("2m_temperature",))
    config.model.update(patch=(2, 4), embed=32, token_hidden=16, embed_hidden=32, blocks=1, head="increment")
    config.optimizer.update(kind="adamw", peak_rate=1e-2, coder_peak_rate=1e-2, warmup_epochs=0.2, weight_decay=1e-2)
    config.training.update(batch_size=16, steps=STEPS)
    config.loss.channel_weights = "tendency"
    settings = make_settings(config.to_dict())
    channels, mesh = build.make_channel_set(settings, archive), make_mesh(1, 1, 1)
    frames = make_frames(archive, channels, mesh)
    starts = valid_starts(archive.times, ("2001-01-01", "2001-05-10"), 6, step_hours=6)
    with use_mesh(mesh):
        training = build.make_training(settings, frames.reference, starts=len(starts))
        state, losses = jax.jit(training.initial_state)(), []
        options = dict(starts=starts, seed=0, batch_size=16, lead_hours=6, first_step=0, last_step=STEPS)
        with Batches(archive, channels, mesh, **options) as batches:
            for batch in batches:
                state, metrics = training.train_step(state, batch, frames.standardization)
                losses.append(metrics["loss"])
    climatology = make_climatology(frames, indices=starts, batch_size=16)
    scored = np.arange(len(TIMES) - 60, len(TIMES) - 5)
    options = dict(starts=scored, lead_hours=[24], batch_size=16, climatology=climatology)
    model = model_forecaster(training.apply, state.params, frames, lead_hours=[24])
    scores = evaluate({"model": model}, frames, **options).isel(lead_hours=0, channel=0)
    return float(np.mean(jax.device_get(losses[-20:]))), scores.rmse.values


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    channels = ChannelSet.from_names(["2m_temperature"])
    return make_archive(tmp_path_factory.mktemp("sun") / "a", follow_the_sun(), times=TIMES, channel_set=channels)


@pytest.mark.slow
def test_the_sun_helps(archive):
    dark, (without, *_) = train(archive)
    sunny, (with_sun, persistence, climatology) = train(archive, "insolation", "insolation_ahead")
    assert sunny < 0.7 * dark
    assert with_sun < 0.98 * persistence < without and with_sun < climatology
