"""The optimizer against its equations, in numpy: groups of rates, the clip, L2 and decoupled decay, the schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from weathermixer.parallel.mesh import make_mesh, sharding, use_mesh
from weathermixer.training.optimizer import make_learning_rate, make_optimizer

RATES = dict(processor_rate=optax.constant_schedule(1e-2), coder_rate=optax.constant_schedule(2e-3))


def parameters():
    rng = np.random.default_rng(0)
    kernel, bias = rng.standard_normal((3, 2)).astype(np.float32), rng.standard_normal(2).astype(np.float32)
    return {"encode": {"kernel": kernel, "bias": bias}, "blocks": {"kernel": kernel + 1, "bias": bias - 1}}


def run(optimizer, gradients):
    params = jax.tree.map(jnp.asarray, parameters())
    moments = optimizer.init(params)
    for gradient in gradients:
        updates, moments = optimizer.update(gradient, moments, params)
        params = optax.apply_updates(params, updates)
    return params


def reference(gradients, *, decay, decoupled, clip):
    params = jax.tree.map(np.float64, parameters())
    first, second = (jax.tree.map(np.zeros_like, params) for _ in range(2))
    for step, gradient in enumerate(gradients, 1):
        norm = np.sqrt(sum(np.sum(np.float64(leaf) ** 2) for leaf in jax.tree.leaves(gradient)))
        for module, rate in (("encode", 2e-3), ("blocks", 1e-2)):
            for name in ("kernel", "bias"):
                g = np.float64(gradient[module][name]) * min(1.0, clip / norm)
                p = params[module][name]
                if not decoupled:
                    g = g + decay * p
                first[module][name] = 0.9 * first[module][name] + 0.1 * g
                second[module][name] = 0.999 * second[module][name] + 0.001 * g**2
                update = first[module][name] / (1 - 0.9**step)
                update = update / (np.sqrt(second[module][name] / (1 - 0.999**step)) + 1e-8)
                if decoupled and name == "kernel":
                    update = update + decay * p
                params[module][name] = p - rate * update
    return params


@pytest.mark.parametrize(("kind", "decoupled"), [("adam", False), ("adamw", True)])
def test_steps_follow_the_equations(kind, decoupled):
    rng = np.random.default_rng(1)
    gradients = [
        jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), parameters()) for _ in range(4)
    ]
    got = run(make_optimizer(kind, weight_decay=0.1, clip_norm=1.0, **RATES), gradients)
    wanted = reference(gradients, decay=0.1, decoupled=decoupled, clip=1.0)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-5), got, wanted)


@pytest.mark.parametrize("kind", ["adam", "adamw", "muon"])
def test_first_moments_are_kept_in_the_dtype_asked_for_and_steps_are_float32(kind):
    rng = np.random.default_rng(1)
    gradients = [
        jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), parameters()) for _ in range(8)
    ]
    with use_mesh(make_mesh(1, 1, 1)):
        full, half = (
            make_optimizer(kind, weight_decay=0.1, momentum_dtype=dtype, **RATES) for dtype in ("float32", "bfloat16")
        )
        kept = jax.tree_util.tree_flatten_with_path(half.init(parameters()))[0]
        wanted, got = run(full, gradients), run(half, gradients)
    found = {
        (kind, leaf.dtype.name)
        for path, leaf in kept
        for kind in ("mu", "nu")
        if f".{kind}[" in jax.tree_util.keystr(path)
    }
    assert found == {("mu", "bfloat16"), ("nu", "float32")}
    for one, other, start in zip(*map(jax.tree.leaves, (got, wanted, parameters()))):
        assert one.dtype == np.float32 and not (one == other).all()
        np.testing.assert_allclose(one - start, other - start, rtol=0.02, atol=1e-4)


def test_muon_takes_orthogonal_steps_on_kernels_of_blocks_and_adams_on_the_rest():
    rng, mesh = np.random.default_rng(1), make_mesh(1, 1, 1)

    def draw(*shape):
        return jax.device_put(rng.standard_normal(shape).astype(np.float32), sharding(mesh, *[None] * len(shape)))

    gradient = {"encode": {"kernel": draw(8, 16)}, "blocks": {"up": {"kernel": draw(8, 16)}, "bias": draw(8)}}
    gradient["blocks"]["circulant"] = {"kernel": draw(8, 16, 3)}
    optimizer = make_optimizer("muon", clip_norm=0.0, **RATES)
    with use_mesh(mesh):
        params = jax.tree.map(jnp.zeros_like, gradient)
        steps, moments = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
    for step, rate in ((steps["encode"]["kernel"], 2e-3), (steps["blocks"]["bias"], 1e-2)):
        np.testing.assert_allclose(np.abs(step), np.abs(step).max(), rtol=1e-4)  # each number's is as large
        assert np.abs(step).max() == pytest.approx(rate, rel=0.5)
    for name in ("up", "circulant"):
        # what is contracted first, offsets too: [24, 16] of [8, 16, 3]
        step, slope = (
            np.moveaxis(np.asarray(tree["blocks"][name]["kernel"]), 1, -1).reshape(-1, 16)
            if name == "circulant"
            else np.asarray(tree["blocks"][name]["kernel"])
            for tree in (steps, gradient)
        )
        singular = np.linalg.svd(step)[1] / (1e-2 * 0.2 * np.sqrt(max(step.shape)))
        assert singular.min() > 0.6 and singular.max() < 1.3
        assert (step * slope).sum() < 0  # downhill
    # one moment of what takes orthogonal steps, two of the rest
    kept = sum(leaf.size for leaf in jax.tree.leaves(moments) if leaf.ndim and leaf.shape != (3,))
    assert kept == 8 * 16 + 8 * 16 * 3 + 2 * (8 * 16 + 8)


def test_learning_rate_warms_up_then_falls_along_a_cosine():
    rate = make_learning_rate(start=1e-6, peak=1e-4, end=1e-5, warmup_steps=10, total_steps=110)
    assert float(rate(0)) == pytest.approx(1e-6)
    assert float(rate(5)) == pytest.approx((1e-6 + 1e-4) / 2)
    assert float(rate(10)) == pytest.approx(1e-4)
    assert float(rate(60)) == pytest.approx((1e-4 + 1e-5) / 2)
    assert float(rate(110)) == pytest.approx(1e-5)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="kind='sgd' is not one of"):
        make_optimizer("sgd", **RATES)
    with pytest.raises(ValueError, match="warm-up of 10 steps does not fit in 10 steps"):
        make_learning_rate(start=0.0, peak=1.0, end=0.0, warmup_steps=10, total_steps=10)
