"""The blend head's own backward pass against the published formula, differentiated by JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from weathermixer.model.heads import Blend
from weathermixer.parallel.mesh import make_mesh, sharding, spec, use_mesh

CHANNELS, COUNTED, GRID = 8, 6, (4, 6)
FIELD = ("batch", "channel", "lat", "lon")


def published(params, decoded, x):
    """LN(concat(LN(decoded), x)) kernel + bias over the counted channels, as the paper has it, on one device."""

    def norm(values, scale, bias):
        mean, variance = values.mean(1, keepdims=True), values.var(1, keepdims=True)
        return (values - mean) / jnp.sqrt(variance + 1e-5) * scale[None, :, None, None] + bias[None, :, None, None]

    params = jax.tree.map(lambda p: p[..., :COUNTED] if p.ndim < 3 else p[:, :COUNTED, :COUNTED], params)
    inner = norm(decoded[:, :COUNTED], params["inner_scale"], params["inner_bias"])
    both = jnp.concatenate([inner, x[:, :COUNTED]], axis=1)
    outer = norm(both, params["outer_scale"].reshape(-1), params["outer_bias"].reshape(-1))
    y = jnp.einsum("bclw,co->bolw", outer, params["kernel"].reshape(2 * COUNTED, COUNTED))
    return jnp.pad(y + params["bias"][None, :, None, None], [(0, 0), (0, CHANNELS - COUNTED), (0, 0), (0, 0)])


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2), pytest.param((1, 1, 8), marks=pytest.mark.slow)])
def test_value_and_every_gradient_are_those_of_the_published_formula(sizes):
    random = np.random.default_rng(3)
    fields = [random.normal(0.3, 1.5, (2, CHANNELS, *GRID)).astype(np.float32) for _ in range(3)]
    mesh = make_mesh(*sizes)
    with use_mesh(mesh):
        graph, params = nnx.split(Blend(CHANNELS, rngs=nnx.Rngs(0)))
        params = {  # nothing at its initial value of zero or one
            name: jax.device_put(p + random.normal(0, 0.3, p.shape).astype(np.float32), p.sharding)
            for name, p in nnx.to_pure_dict(params).items()
        }
        decoded, x, weight = (jax.device_put(field, sharding(mesh, *FIELD)) for field in fields)

        def loss(params, decoded, x):
            y = nnx.merge(graph, params)(decoded, x, np.arange(CHANNELS) < COUNTED)
            return (y * weight).sum(), y

        (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(params, decoded, x)
        assert jax.typeof(y).sharding.spec == spec(*FIELD)
        y, gradients, params = jax.device_get((y, gradients, params))

    def expected_loss(params, decoded, x):
        y = published(params, decoded, x)
        return (y * fields[2]).sum(), y

    differentiate = jax.jit(jax.value_and_grad(expected_loss, (0, 1, 2), has_aux=True))
    (_, expected), expected_gradients = differentiate(params, *fields[:2])
    np.testing.assert_allclose(y, expected, atol=2e-5)
    for path, gradient in jax.tree.leaves_with_path(gradients):
        wanted = dict(jax.tree.leaves_with_path(expected_gradients))[path]
        error = np.linalg.norm(gradient - wanted) / np.linalg.norm(wanted)
        assert error < 1e-5, f"{jax.tree_util.keystr(path)}: {error}"


def test_bfloat16_decoded_fields_round_the_result_but_not_the_state():
    """The state comes through in float32: with a kernel that only passes it on, the result does not know of bf16."""
    random = np.random.default_rng(4)
    decoded, x = (jnp.asarray(random.normal(0, 1, (1, CHANNELS, *GRID)), jnp.float32) for _ in range(2))
    with use_mesh(make_mesh(1, 1, 1)):
        head = Blend(CHANNELS, rngs=nnx.Rngs(0))
        predicted = np.ones(CHANNELS, bool)
        wide, narrow = (head(decoded.astype(dtype), x, predicted) for dtype in (jnp.float32, jnp.bfloat16))
        assert narrow.dtype == jnp.float32
        assert 0 < jnp.abs(narrow - wide).max() < 0.02
        head.kernel[...] = jnp.stack([jnp.zeros((CHANNELS, CHANNELS)), jnp.eye(CHANNELS)])
        wide, narrow = (head(decoded.astype(dtype), x, predicted) for dtype in (jnp.float32, jnp.bfloat16))
        state = narrow - narrow.mean(1, keepdims=True)
        slope = (state * x).sum(1, keepdims=True) / (x * (x - x.mean(1, keepdims=True))).sum(1, keepdims=True)
        np.testing.assert_allclose(state, slope * (x - x.mean(1, keepdims=True)), atol=1e-5)
