"""Rollouts: the states they yield, what they hold, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from weathermixer.forecasting.rollout import rollout
from weathermixer.parallel.mesh import make_mesh, sharding, use_mesh

SHAPE = (2, 4, 8, 6)
DYNAMIC = np.array([1.0, 1.0, 0.0, 0.0], np.float32)[:, None, None]  # two dynamic channels, a static one, padding


def apply(params, x, *, repeats=1, key=None):
    """Adds to every dynamic channel a share of the static channel, `repeats` times; zeros elsewhere."""
    assert key is None
    forcing = jnp.sum(x * (1 - DYNAMIC)[None], axis=1, keepdims=True)
    return (x + repeats * params["rate"] * forcing) * DYNAMIC[None]


def put_back(static):
    """A next input with the static fields again."""
    return lambda prediction, steps: prediction + static[None]


def make_inputs(mesh):
    static = np.zeros(SHAPE[1:], np.float32)
    static[2] = np.linspace(-1, 1, SHAPE[2])[:, None]
    dynamic = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32) * DYNAMIC
    x = jax.device_put(dynamic + static, sharding(mesh, "batch", "channel", "lat", "lon"))
    return {"rate": jnp.float32(0.25)}, x, jax.device_put(static, sharding(mesh, "channel", "lat", "lon"))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2), (1, 4, 2)])
@pytest.mark.parametrize("mode", ["autoregressive", "latent"])
def test_each_lead_is_so_many_steps(shape, mode):
    mesh = make_mesh(*shape)
    with use_mesh(mesh):
        params, x, static = make_inputs(mesh)
        leads = dict(rollout(apply, params, x, advance=put_back(static), lead_steps=[1, 3, 4], mode=mode))
    assert list(leads) == [1, 3, 4]
    for steps, prediction in leads.items():
        # the static field is put back after every step, or the forcing would stop after the first
        expected = (np.asarray(x) + steps * 0.25 * np.asarray(static)[2]) * DYNAMIC
        np.testing.assert_allclose(prediction, expected, rtol=1e-6, atol=1e-6)
        assert prediction.sharding.is_equivalent_to(sharding(mesh, "batch", "channel", "lat", "lon"), 4)


def test_steps_are_computed_only_when_asked_for_and_compiled_once():
    traced = []

    def counting(params, x, *, repeats=1, key=None):
        traced.append(repeats)
        return apply(params, x, repeats=repeats, key=key)

    mesh = make_mesh(1, 1, 1)
    with use_mesh(mesh):
        params, x, static = make_inputs(mesh)
        forecast = rollout(counting, params, x, advance=put_back(static), lead_steps=range(1, 1000))
        assert not traced
        steps, _ = next(forecast)
        assert (steps, traced) == (1, [1])
        list(rollout(counting, params, x, advance=put_back(static), lead_steps=range(1, 20)))
        assert len(traced) == 1


@pytest.mark.parametrize("lead_steps", [[], [0, 1], [2, 1], [1, 1]])
def test_leads_that_do_not_ascend_are_refused(lead_steps):
    x = jnp.zeros(SHAPE)
    with pytest.raises(ValueError, match="lead_steps"):
        rollout(apply, {}, x, advance=put_back(x[0]), lead_steps=lead_steps)


def test_an_unknown_mode_is_refused():
    x = jnp.zeros(SHAPE)
    with pytest.raises(ValueError, match=r"mode='magic'.*latent"):
        rollout(apply, {}, x, advance=put_back(x[0]), lead_steps=[1], mode="magic")


def by_leads(params, x, *, repeats=1, previous=None, lead=None):
    """Each application adds its lead, as it is told, and 1000; what it sees a step before must be a step less."""
    lead = jnp.zeros(len(x), jnp.int32) if lead is None else lead
    told = sum((lead == number) * steps for number, steps in enumerate(params))
    after = x + told[:, None, None, None] + 1000
    if previous is not None:
        after += jnp.where(x % 1000 - previous % 1000 == 1, 0, 1e6)
    return after


@pytest.mark.parametrize(
    ("leads", "wanted", "applications"),
    [
        ((1, 4), [1, 4, 6, 12], [1, 1, 3, 3]),  # 6 is 4 after 2, which is 1 after 1
        ((1, 2, 4), [3, 7], [2, 3]),
        ((4,), [4, 12], [1, 3]),
        ((2, 4), [2, 10], [1, 3]),
    ],
)
@pytest.mark.parametrize("history", [False, True])
def test_a_lead_is_reached_by_the_fewest_applications(leads, wanted, applications, history):
    mesh = make_mesh(2, 2, 2)
    if history and leads[0] > 1:
        return  # the step before is not made
    with use_mesh(mesh):
        x = jax.device_put(np.full(SHAPE, 10, np.float32), sharding(mesh, "batch", "channel", "lat", "lon"))
        options = dict(lead_steps=wanted, leads=leads, previous=x - 1 if history else None)
        found = dict(rollout(by_leads, leads, x, advance=lambda prediction, steps: prediction, **options))
    assert list(found) == wanted
    for (steps, prediction), count in zip(found.items(), applications):
        np.testing.assert_array_equal(prediction, 10 + steps + 1000 * count)


def test_what_leads_cannot_do_is_refused():
    x = jnp.zeros(SHAPE)
    with pytest.raises(ValueError, match=r"lead_steps=\[6\] cannot be forecast with leads of \(4,\) steps"):
        rollout(by_leads, (4,), x, advance=put_back(x[0]), lead_steps=[4, 6], leads=(4,))
    with pytest.raises(ValueError, match="mode='latent' is for models without leads or noise"):
        rollout(by_leads, (4,), x, advance=put_back(x[0]), lead_steps=[4], leads=(4,), mode="latent")
