"""Models that see two frames: the earlier one is read, turned, encoded and carried along where it belongs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.archives import make_archive, make_frames
from weathermixer.archive.loader import Batches
from weathermixer.archive.sampling import with_previous
from weathermixer.fields.variables import ChannelSet
from weathermixer.forecasting.forecasts import make_forecast
from weathermixer.forecasting.rollout import model_forecaster, rollout
from weathermixer.model.weathermixer import ModelShape, WeatherMixer
from weathermixer.parallel.mesh import make_mesh, sharding, use_mesh
from weathermixer.planning.work import parameters
from weathermixer.training.steps import make_loss
from weathermixer.verification.climatologies import make_climatology
from weathermixer.verification.evaluation import evaluate

CHANNELS = ChannelSet.from_names(["10m_u_component_of_wind", "10m_v_component_of_wind"], multiple=4)
PREDICTED = CHANNELS.predicted.astype(np.float32)[None, :, None, None]
TIMES = np.datetime64("2020-01-01T00", "ns") + np.setdiff1d(np.arange(24), [9]) * np.timedelta64(6, "h")
SHAPE = ModelShape(
    grid=(8, 16), channels=4, predicted=2, patch=(2, 4), embed=16, token_hidden=8, embed_hidden=16, blocks=1,
    head="increment", history=2,
)  # fmt: skip


def extrapolate(params, x, *, previous=None, repeats=1, key=None):
    """Goes on as from the previous frame to this one: exact for what changes at a steady rate."""
    return (x + repeats * (x - previous)) * PREDICTED


@pytest.fixture
def archive(tmp_path):
    random = np.random.default_rng(0)
    steps = ((TIMES - TIMES[0]) / np.timedelta64(6, "h"))[:, None, None, None]
    fields = random.normal(size=(1, 2, 8, 16)) + 0.1 * steps * random.normal(size=(1, 2, 8, 16))
    return make_archive(tmp_path / "a", fields.astype(np.float32), times=TIMES, channel_set=CHANNELS)


def test_starts_without_the_frame_before_are_left_out():
    # index 9 is the time after the gap
    assert with_previous(TIMES, np.arange(7, 12), step_hours=6).tolist() == [7, 8, 10, 11]
    with pytest.raises(ValueError, match="none of 2 starts has the time 6 h before it"):
        with_previous(TIMES, np.array([0, 9]), step_hours=6)


@pytest.mark.parametrize("mesh_shape", [(1, 1, 1), (2, 2, 2)])
def test_batches_hold_the_frame_before_each_start(archive, mesh_shape):
    mesh, starts = make_mesh(*mesh_shape), np.arange(1, 8)
    options = {"seed": 0, "batch_size": 4, "lead_hours": 6, "first_step": 0, "last_step": 2, "history": 2}
    stored = np.asarray(archive.store.read().result())
    with use_mesh(mesh), Batches(archive, CHANNELS, mesh, starts=starts, **options) as batches:
        for batch in batches:
            for row, frame in enumerate(np.asarray(batch.inputs)[:, :2]):
                (start,) = np.flatnonzero((stored == frame).all(axis=(1, 2, 3)))
                np.testing.assert_array_equal(np.asarray(batch.previous)[row, :2], stored[start - 1])
                np.testing.assert_array_equal(np.asarray(batch.targets)[row, :2], stored[start + 1])


@pytest.mark.parametrize("mesh_shape", [(1, 1, 1), (2, 2, 2)])
def test_rollout_scores_and_forecasts_carry_the_state_before(archive, mesh_shape):
    mesh = make_mesh(*mesh_shape)
    frames = make_frames(archive, CHANNELS, mesh)
    climatology = make_climatology(frames, indices=np.arange(9), batch_size=2)
    options = {"starts": np.arange(12, 16), "batch_size": 2}
    model = model_forecaster(extrapolate, {}, frames, lead_hours=[6, 36], history=2)
    scores = evaluate({"model": model}, frames, **options, lead_hours=[6, 36], climatology=climatology)
    scores = scores.sel(source=["model", "persistence"], channel=list(CHANNELS.names))
    relative = scores.rmse / archive.statistics.std
    assert (relative.sel(source="model") < 1e-5).all() and (relative.sel(source="persistence") > 1e-2).all()
    stored = np.asarray(archive.store.read().result())
    for starts, lead, fields in make_forecast(model, frames, **options):
        expected = stored[options["starts"][starts] + (1, 6)[lead]]
        np.testing.assert_allclose(np.asarray(fields)[:, :2], expected, atol=1e-4)


def test_latent_rollout_sees_both_frames():
    x = jnp.ones((2, 4, 8, 16))
    options = {"advance": print, "previous": 0.75 * x, "lead_steps": [3], "mode": "latent"}
    (found,) = rollout(extrapolate, {}, x, **options)
    np.testing.assert_array_equal(found[1], 1.75 * np.asarray(x) * PREDICTED)


@pytest.fixture(scope="module")
def model():
    with use_mesh(make_mesh(1, 1, 1)):
        return WeatherMixer(SHAPE, rngs=nnx.Rngs(params=0), tendency=[0.5, 0.5, 0.0, 0.0])


def test_the_model_sees_both_frames_and_nothing_is_counted_twice(model):
    mesh = make_mesh(1, 1, 1)
    x, previous = np.random.default_rng(0).normal(size=(2, 2, 4, 8, 16)).astype(np.float32) * PREDICTED
    with use_mesh(mesh):
        cut = sharding(mesh, "batch", "channel", "lat", "lon")
        x, previous = jax.device_put(x, cut), jax.device_put(previous, cut)
        # one affine map of both frames' features: exchanging frames and kernels changes nothing in what is decoded
        graph, state = nnx.split(model)
        swapped = nnx.split(model)[1]
        swapped["encode"]["kernel"], swapped["previous_kernel"] = state["previous_kernel"], state["encode"]["kernel"]
        apply = jax.jit(lambda state, x, previous: nnx.merge(graph, state)(x, previous=previous) - x)
        plain, still = apply(state, x, previous), apply(state, x, x)
        exchanged = apply(swapped, previous, x)
    assert np.abs(np.asarray(plain - still)[:, :2]).max() > 1e-3 and not np.asarray(plain)[:, 2:].any()
    np.testing.assert_allclose(exchanged, plain, atol=1e-5)
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model))) == parameters(SHAPE)


def test_frames_that_do_not_fit_the_model_are_refused(model):
    with use_mesh(make_mesh(1, 1, 1)), pytest.raises(ValueError, match="history=2: the previous frame is given"):
        model(jnp.zeros((1, 4, 8, 16)))
    with pytest.raises(ValueError, match="history=3 must be 1 or 2"):
        ModelShape(grid=(8, 16), channels=4, predicted=2, patch=(2, 4), history=3)


def test_the_loss_turns_both_frames_together(archive):
    mesh = make_mesh(2, 2, 2)
    standardization = make_frames(archive, CHANNELS, mesh).standardization
    ones = np.ones(4, np.float32) * PREDICTED[0, :, 0, 0]
    loss = make_loss(extrapolate, area=np.ones(8), channel=ones, repeats=1, augmentation="rotate_longitude")
    options = {"seed": 0, "batch_size": 4, "lead_hours": 6, "first_step": 0, "last_step": 1, "history": 2}
    with use_mesh(mesh), Batches(archive, CHANNELS, mesh, starts=np.arange(1, 8), **options) as batches:
        value = jax.jit(loss)({}, next(batches), standardization, jax.random.key(1))
    # the steady rate is seen through any rotation, if the three frames turn alike
    assert float(value) < 1e-9
