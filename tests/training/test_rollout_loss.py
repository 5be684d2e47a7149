"""Losses of forecasts that are fed back: what they are, what they cost in memory, and gradients made in parts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_training import GRID, make_tiny, tiny_settings
from weathermixer.archive.loader import Batches
from weathermixer.archive.sampling import sample_starts
from weathermixer.archive.standardization import make_input, standardize
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel.mesh import make_mesh, sharding, use_mesh
from weathermixer.planning.account import held, kept_for_backward
from weathermixer.planning.memory import fed_back_bytes
from weathermixer.runs.build import rollout_stages
from weathermixer.training.losses import weighted_mse
from weathermixer.training.steps import make_loss

AREA, CHANNEL = np.linspace(0.5, 1.5, GRID[0]), np.array([1.0, 2.0, 0.5, 1.5, 0, 0, 0, 0], np.float32)
ROLES = dict(
    channels=("2m_temperature", "geopotential_500", "sea_ice_cover"),
    input_only=("sea_ice_cover",),
    forcings=("insolation",),
)


def linear(params, x, *, repeats, key):
    """A model of one number that sees all of its input: params x + a tenth of the mean of x over channels."""
    predicted = (CHANNEL > 0).astype(np.float32)[None, :, None, None]
    return repeats * (params * x + 0.1 * x.mean(1, keepdims=True)) * predicted


def by_hand(params, tiny, batch, weights, *, cut=False):
    """The loss of a rollout, written out."""
    s, first = tiny.standardization, len(tiny.channel_set.dynamic)
    state, value = standardize(batch.inputs, s), 0.0
    for number, (weight, frames) in enumerate(zip(weights, (batch.targets, *batch.later))):
        x = make_input(state, s, (batch.terms, *batch.later_terms)[number])
        prediction, target = linear(params, x, repeats=1, key=None), standardize(frames, s)
        value += weight * weighted_mse(prediction, target, area=AREA, channel=CHANNEL)
        prediction = jax.lax.stop_gradient(prediction) if cut else prediction
        prescribed = (np.arange(8) >= first) & (np.arange(8) < len(tiny.channel_set.stored))
        state = jnp.where(prescribed[None, :, None, None], target, prediction)
    return value / sum(weights)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("roles", [{}, ROLES], ids=["plain", "roles"])
def test_it_is_the_loss_of_forecasts_fed_back(roles, cut):
    tiny, weights = make_tiny((2, 2, 2), rollout=(3,), **roles), (1.0, 0.0, 2.0)
    stored = (len(tiny.channel_set.dynamic), len(tiny.channel_set.stored))
    options = dict(rollout_weights=weights, cut_gradient=cut, input_only=stored)
    loss = make_loss(linear, area=AREA, channel=CHANNEL, repeats=1, **options)
    with use_mesh(tiny.mesh):
        batch = tiny.make_batch(0)
        found = jax.jit(jax.value_and_grad(loss))(0.7, batch, tiny.standardization, None)
        expected = jax.jit(jax.value_and_grad(lambda p: by_hand(p, tiny, batch, weights, cut=cut)))(0.7)
        whole = jax.jit(jax.grad(lambda p: by_hand(p, tiny, batch, weights)))(0.7)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert cut == (abs(found[1] - whole) > 0.01 * abs(whole))


def test_turned_about_the_axis_all_frames_turn_alike():
    tiny = make_tiny((2, 2, 2), rollout=(2,), **ROLES)
    options = dict(area=AREA, channel=CHANNEL, repeats=1, rollout_weights=(1.0, 1.0), input_only=(2, 3))
    plain, turned = (make_loss(linear, augmentation=name, **options) for name in ("none", "rotate_longitude"))
    with use_mesh(tiny.mesh):
        arguments = (0.7, tiny.make_batch(0), tiny.standardization, jax.random.key(5))
        # the model knows no longitude, so that turning changes nothing but the order of sums
        np.testing.assert_allclose(jax.jit(plain)(*arguments), jax.jit(turned)(*arguments), rtol=1e-6)


@pytest.mark.parametrize("history, block", [(1, 1), (2, 1), (1, 4)])
def test_batches_hold_the_frames_of_every_lead(make_archive, history, block):
    archive, mesh = make_archive(times=24), make_mesh(2, 2, 2)
    channels = ChannelSet.from_names(
        [channel.name for channel in archive.channels], forcings=["insolation"], multiple=2
    )
    options = dict(
        seed=0, batch_size=2, lead_hours=12, first_step=0, last_step=4, history=history, rollout=3, block=block
    )
    stored = archive.store.read().result()
    with Batches(archive, channels, mesh, starts=np.arange(1, 17), **options) as batches:
        for batch in batches:
            inputs = np.asarray(batch.inputs)[:, :4]
            starts = [int(np.flatnonzero((stored == sample).all((1, 2, 3)))[0]) for sample in inputs]
            assert len(batch.later) == len(batch.later_terms) == 2
            for lead, frames in zip((2, 4, 6), (batch.targets, *batch.later)):
                np.testing.assert_array_equal(np.asarray(frames)[:, :4], stored[np.add(starts, lead)])
        account = batches.account()
    # frames that a sample shares with another are read once
    asked_for = 4 * 2 * (3 + 1 + (history == 2)) * archive.store[0].size * 2
    assert account.bytes_needed <= asked_for and (block == 1 or account.bytes_needed < asked_for)


def test_each_samples_lead_is_drawn_from_seed_and_step(make_archive):
    archive, mesh, leads = make_archive(times=40), make_mesh(2, 2, 2), (1, 2, 4)
    channels = ChannelSet.from_names([c.name for c in archive.channels], forcings=["insolation"], multiple=2)
    options = dict(starts=np.arange(32), seed=3, batch_size=8, lead_hours=6, last_step=8, rollout=2, leads=leads)
    stored, drawn = archive.store.read().result(), []
    with Batches(archive, channels, mesh, first_step=0, **options) as batches:
        for step, batch in enumerate(batches):
            starts = [int(np.flatnonzero((stored == x).all((1, 2, 3)))[0]) for x in np.asarray(batch.inputs)[:, :4]]
            numbers = np.asarray(batch.lead)
            assert starts == sample_starts(options["starts"], seed=3, step=step, batch_size=8).tolist()
            assert batch.lead.sharding == sharding(mesh, "batch")
            for count, frames in enumerate((batch.targets, *batch.later), 1):
                expected = stored[np.add(starts, count * np.array(leads)[numbers])]
                np.testing.assert_array_equal(np.asarray(frames)[:, :4], expected)
            drawn.append(numbers)
    assert min(np.bincount(np.concatenate(drawn))) > 10 and len({tuple(numbers) for numbers in drawn}) == 8
    with Batches(archive, channels, mesh, first_step=5, **options) as batches:  # resumed
        assert np.array_equal(np.asarray(next(batches).lead), drawn[5])
    with Batches(archive, channels, mesh, first_step=0, **options | {"leads": (4,)}) as batches:
        batch = next(batches)
        assert batch.lead is None
        starts = sample_starts(options["starts"], seed=3, step=0, batch_size=8)
        np.testing.assert_array_equal(np.asarray(batch.targets)[:, :4], stored[starts + 4])


def test_members_are_fed_back_each_for_itself():
    """A model that adds noise: its ensemble spreads as a random walk, and the loss is the CRPS of that."""
    tiny = make_tiny((2, 2, 2), rollout=(3,))

    def walk(params, x, *, repeats, key, noise):
        return (x + params * noise[:, :1, None, None]) * (CHANNEL > 0).astype(np.float32)[None, :, None, None]

    options = dict(area=AREA, channel=CHANNEL, repeats=1, members=4, noise=2)
    with use_mesh(tiny.mesh):
        batch = tiny.make_batch(0)
        batch = dataclasses.replace(batch, targets=batch.inputs, later=(batch.inputs,) * 2)
        leads, losses = np.eye(3), []
        for weights in leads:
            loss = jax.jit(make_loss(walk, rollout_weights=tuple(weights), **options))
            draws = [loss(0.5, batch, tiny.standardization, jax.random.key(n)) for n in range(20)]
            losses.append(np.mean(draws))
        assert loss(0.5, batch, tiny.standardization, None) == loss(0.5, batch, tiny.standardization, None)
    # of N(0, s^2) about the truth: s (2 phi(0) - 1 / sqrt(pi)), s = 0.5 sqrt(lead); channels have weights of mean 1.25
    expected = 1.25 * 0.5 * np.sqrt([1, 2, 3]) * (2 / np.sqrt(2 * np.pi) - 1 / np.sqrt(np.pi))
    np.testing.assert_allclose(losses, expected, rtol=0.1)


def test_memory_grows_by_one_state_a_step():
    """What differentiation keeps, beside its arguments: the states that are fed back, and one step's own."""
    kept = {}
    for rollout in (2, 4, 12):
        tiny = make_tiny((1, 2, 2), rollout=(rollout,))
        with use_mesh(tiny.mesh):
            state = jax.eval_shape(tiny.training.initial_state)
            arguments = (state.params, tiny.make_batch(0), tiny.standardization, None)
            activations, _ = kept_for_backward(tiny.training.loss, *arguments)
        kept[rollout] = sum(map(held, activations))
    size = 8 * 8 * np.prod(GRID) * 4 / 4  # a batch of eight, eight channels, float32, on four devices
    more = (kept[12] - kept[4]) / 8
    assert more == (kept[4] - kept[2]) / 2
    # the input of a step, and its target in 16 bits
    assert more == 1.5 * size == fed_back_bytes(tiny.training.shape) * 8 / 4


@pytest.mark.slow
def test_a_gradient_made_in_parts_is_that_of_the_whole_batch():
    whole, parts = (make_tiny((2, 2, 2), accumulate=accumulate, batch_size=8) for accumulate in (1, 4))
    (expected, _), (losses, _) = whole.run(steps=3), parts.run(steps=3)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    norms = []
    for tiny in (whole, parts):
        with use_mesh(tiny.mesh):
            state = jax.jit(tiny.training.initial_state)()
            _, metrics = tiny.training.train_step(state, tiny.make_batch(0), tiny.standardization)
        norms.append(float(metrics["grad_norm"]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_a_run_goes_through_its_stages():
    settings = tiny_settings(rollout=(1, 2, 4), rollout_from=(0, 5, 8))
    assert rollout_stages(settings, 0, 10) == [(0, 5, 1), (5, 8, 2), (8, 10, 4)]
    assert rollout_stages(settings, 6, 10) == [(6, 8, 2), (8, 10, 4)]
    assert rollout_stages(settings, 10, 10) == [(10, 10, 4)]
    assert rollout_stages(settings, 0, 5) == [(0, 5, 1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rollout=(1, 2)), r"rollout_from=\(0,\): give a step for each of rollout=\(1, 2\)"),
        (dict(rollout=(1, 2), rollout_from=(0, 0)), "ascending"),
        (dict(rollout=(0,)), "should be greater than or equal to 1"),
        (dict(rollout=(2,), rollout_weights=(1.0,)), "give one for each lead"),
        (dict(rollout=(2,), rollout_weights=(0.0, 0.0)), "give one for each lead"),
        (dict(rollout=(2,), history=2, lead_steps=2), "set history=1, or rollout=1 and leads from 1 on"),
        (dict(leads=(2, 3)), r"leads=\(2, 3\) must ascend, each a multiple of the first"),
        (dict(leads=(1, 2), lead_steps=2), "set 1 and autoregressive, or no leads"),
        (dict(leads=(4,), history=2), "set history=1, or rollout=1 and leads from 1 on"),
        (dict(members=2), "they differ by noise: set 2 and 16, or 1 and 0"),
        (dict(noise=2), "they differ by noise: set 2 and 16, or 1 and 0"),
        (dict(accumulate=3), "accumulate=3 does not divide batch_size=8"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_settings(**options)
