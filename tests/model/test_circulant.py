"""Circulant token mixing: its layer against Fourier transforms, and a model that knows no first longitude."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.model.test_weathermixer import fields, make
from weathermixer.model.layers import Dense
from weathermixer.model.weathermixer import ModelShape
from weathermixer.parallel.mesh import make_mesh, sharding, use_mesh
from weathermixer.parallel.schedule import SCHEDULES
from weathermixer.planning.work import parameters

SIZES = dict(embed=16, token_hidden=48, embed_hidden=32, blocks=2, token_mixing="circulant")
SHAPE = ModelShape(grid=(16, 18), channels=8, predicted=5, patch=(2, 3), head="increment", **SIZES)


def by_fourier(x, kernel, bias):
    """Along longitude a convolution, which is a product of Fourier transforms; over rows a matrix product."""
    rows, produced, columns = kernel.shape
    waves = np.fft.fft(x.reshape(len(x), rows, columns, -1), axis=2)
    y = np.fft.ifft(np.einsum("bslk,srl->brlk", waves, np.fft.fft(kernel, axis=2)), axis=2).real
    return (y + bias[:, None, None]).reshape(len(x), produced * columns, -1)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_a_layer_is_a_convolution_along_longitude(sizes, schedule):
    mesh, rng = make_mesh(*sizes), np.random.default_rng(0)
    x = rng.standard_normal((2, 8 * 6, 4)).astype(np.float32)
    with use_mesh(mesh):
        layer = Dense(48, 24, over="token", columns=6, schedule=schedule, rngs=nnx.Rngs(0))
        layer.bias[...] = jax.device_put(rng.standard_normal(4).astype(np.float32), layer.bias[...].sharding)
        y = nnx.jit(lambda layer, x: layer(x))(layer, jax.device_put(x, sharding(mesh, "batch", "token", "embed")))
    expected = by_fourier(*(np.asarray(value, np.float64) for value in (x, layer.kernel[...], layer.bias[...])))
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("mixing", ["circulant", pytest.param("dense", marks=pytest.mark.slow)])
def test_turned_by_a_patch_the_forecast_is_turned(mixing):
    shape = ModelShape(**{**vars(SHAPE), "token_mixing": mixing})
    mesh = make_mesh(1, 2, 2)
    params, apply = make(shape, mesh, tendency=[1.0] * 8)
    rng = np.random.default_rng(1)  # biases, too, that are born zero
    shifts = jax.tree.map(lambda p: jax.device_put(rng.normal(0, 0.1, p.shape).astype(np.float32), p.sharding), params)
    params = jax.tree.map(jnp.add, params, shifts)
    x = fields(mesh, shape)
    with use_mesh(mesh):
        y, turned = jax.jit(apply)(params, x), jax.jit(apply)(params, jnp.roll(x, 2 * shape.patch[1], axis=-1))
    error = np.abs(np.roll(np.asarray(y), 2 * shape.patch[1], axis=-1) - np.asarray(turned)).max()
    assert (error < 1e-4) if mixing == "circulant" else (error > 0.1)


def test_it_has_as_many_parameters_fewer_as_columns():
    params, _ = make(SHAPE, make_mesh(1, 1, 1), tendency=[1.0] * 8)
    kernels = [params["blocks"][0]["token_mlp"][name]["kernel"][...].shape for name in ("up", "down")]
    assert kernels == [(8, 8, 6), (8, 8, 6)]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters(SHAPE)


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="token_hidden=40 is not whole rows of 6 tokens.*choose a multiple of 6"):
        ModelShape(**{**vars(SHAPE), "token_hidden": 40})
    with pytest.raises(ValueError, match="token_mixing='fft' is not one of"):
        ModelShape(**{**vars(SHAPE), "token_mixing": "fft"})
    with pytest.raises(ValueError, match=r"token_hidden=4 is not divisible by domain=4 \* tensor=2"):
        make(ModelShape(**{**vars(SHAPE), "token_hidden": 24}), make_mesh(1, 4, 2))
