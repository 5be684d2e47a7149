"""GELU and LayerNorm with backward passes of their own, beside JAX's, differentiated by JAX, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from weathermixer.model.elementwise import gelu, layer_norm
from weathermixer.parallel.mesh import make_mesh, sharding, use_mesh

MESHES = [(1, 1, 1), (2, 2, 2), (1, 1, 8)]


def random(*shape):
    return np.random.default_rng(sum(shape)).normal(0.4, 1.7, shape).astype(np.float32)


def check(function, plain, arrays, names, sizes, *, tolerance):
    """Value and every gradient of sum(f * weight), on a mesh in float32 and plain on one device in float64."""
    weight = random(*arrays[0].shape)
    mesh = make_mesh(*sizes)
    with use_mesh(mesh):
        cut = [jax.device_put(a, sharding(mesh, *n)) for a, n in zip(arrays, names, strict=True)]
        own = jax.jit(lambda *a: jax.vjp(function, *a)[1](jax.device_put(weight, sharding(mesh, *names[0]))))(*cut)
        found = [jax.jit(function)(*cut), *own]
    with jax.enable_x64(True):
        wide = [jnp.asarray(a, jnp.float64) for a in arrays]
        y, pull = jax.vjp(plain, *wide)
        expected = [y, *pull(jnp.asarray(weight, jnp.float64))]
        expected = [np.asarray(e) for e in expected]
    for one, exact in zip(found, expected, strict=True):
        error = np.abs(np.asarray(one) - exact).max() / np.abs(exact).max()
        assert error < tolerance, error


@pytest.mark.parametrize("sizes", MESHES)
def test_gelu_and_its_gradients_are_the_exact_ones(sizes):
    activation = ("batch", "token", "embed")
    for bias, names in (((1, 1, 16), (None, None, "embed")), ((1, 24, 1), (None, "token", None))):
        arrays, cuts = [3 * random(2, 24, 16), random(*bias)], [activation, names]
        check(gelu, lambda x, b: jax.nn.gelu(x + b, approximate=False), arrays, cuts, sizes, tolerance=2e-6)


@pytest.mark.parametrize("sizes", MESHES)
def test_layer_norm_and_its_gradients_are_the_plain_formulas(sizes):
    def plain(x, scale, bias):
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5) * scale + bias

    arrays = [random(2, 24, 16), random(1, 1, 16), random(1, 1, 16)]
    cuts = [("batch", "token", "embed"), (None, None, "embed"), (None, None, "embed")]
    check(layer_norm, plain, arrays, cuts, sizes, tolerance=3e-6)
