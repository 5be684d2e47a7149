"""The model against the published equations, its orders, its head, and where its parameters are born."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.model.published import forward, poured, random_weights
from weathermixer.model.patching import patch, unpatch
from weathermixer.model.weathermixer import ModelShape, WeatherMixer
from weathermixer.parallel.mesh import make_mesh, sharding, use_mesh
from weathermixer.planning.work import parameters

SIZES = dict(embed=16, token_hidden=24, embed_hidden=32, blocks=2)
SHAPE = ModelShape(grid=(8, 12), channels=8, predicted=5, patch=(1, 3), **SIZES)
SHAPE_PREDICTED = (np.arange(8) < 5).astype(np.float32)[None, :, None, None]


def make(shape, mesh, **options):
    """(params, apply) of a model on a mesh."""

    def build(key):
        return WeatherMixer(shape, rngs=nnx.Rngs(params=key), **options)

    with use_mesh(mesh):
        params = jax.jit(lambda key: nnx.split(build(key))[1])(jax.random.key(0))
        graph = nnx.split(nnx.eval_shape(build, jax.random.key(0)))[0]
    return params, lambda params, x, **call: nnx.merge(graph, params)(x, **call)


def fields(mesh, shape, batch=2, seed=0):
    values = np.random.default_rng(seed).standard_normal((batch, shape.channels, *shape.grid)).astype(np.float32)
    return jax.device_put(values, sharding(mesh, "batch", "channel", "lat", "lon"))


@pytest.mark.parametrize("mesh_sizes", [pytest.param((1, 1, 1), marks=pytest.mark.slow), (1, 4, 2)])
def test_foreign_weights_poured_in_give_the_published_output(mesh_sizes):
    channels, dynamic, columns = SHAPE.channels, SHAPE.predicted, SHAPE.patch[1]
    sizes = dict(channels=channels, dynamic=dynamic, patch=columns, blocks=2)
    weights = random_weights(np.random.default_rng(1), tokens=SHAPE.tokens, **{**SIZES, **sizes})
    tree = poured(weights, embed=SIZES["embed"], **sizes)
    mesh = make_mesh(*mesh_sizes)
    params, apply = make(SHAPE, mesh)

    def pour(path, leaf):
        name = "/".join(str(entry.key) for entry in path if hasattr(entry, "key"))
        assert tree[name].shape == leaf.shape, name
        return jax.device_put(tree[name].astype(np.float32), leaf.sharding)

    params = jax.tree_util.tree_map_with_path(pour, params)
    x = fields(mesh, SHAPE)
    with use_mesh(mesh):
        y = np.asarray(jax.jit(apply, static_argnames="repeats")(params, x, repeats=2))
    # float32 x float64 reference; channels 5 to 7 stand for static fields
    wanted = forward(
        weights, np.moveaxis(np.asarray(x, np.float64), 1, -1), dynamic=dynamic, patch=columns, blocks=2, repeats=2
    )
    np.testing.assert_allclose(np.moveaxis(y[:, :dynamic], 1, -1), wanted, atol=2e-5)
    assert not y[:, dynamic:].any()


@pytest.mark.parametrize("size", [(1, 3), (2, 4), (4, 1)])
def test_patches_are_ordered_as_documented_and_come_back(size):
    mesh = make_mesh(1, 2, 4)
    x = fields(mesh, SHAPE)
    with use_mesh(mesh):
        tokens = patch(x, size)
        back = unpatch(tokens, size, SHAPE.grid)
    assert jax.typeof(tokens).sharding.spec == sharding(mesh, "batch", "token", "feature").spec
    np.testing.assert_array_equal(back, x)
    rows, columns = size
    whole, i, j, c, r, s = np.asarray(tokens), 1, 2, 5, rows - 1, columns - 1
    token, feature = i * (SHAPE.grid[1] // columns) + j, (c * rows + r) * columns + s
    np.testing.assert_array_equal(whole[:, token, feature], np.asarray(x)[:, c, i * rows + r, j * columns + s])


@pytest.mark.slow  # learning is also what test_parity.py's test_padding_is_exact looks at
def test_padding_channels_change_nothing_and_learn_nothing():
    mesh = make_mesh(1, 1, 1)
    params, apply = make(SHAPE, mesh)
    x = fields(mesh, SHAPE) * SHAPE_PREDICTED
    with use_mesh(mesh):
        y = jax.jit(apply)(params, x)
        gradient = jax.jit(jax.grad(lambda params: apply(params, x).sum()))(params)
    assert np.asarray(y)[:, : SHAPE.predicted].any()
    assert not np.asarray(y)[:, SHAPE.predicted :].any()
    unused = np.asarray(gradient["encode"]["kernel"][...]).reshape(SHAPE.channels, -1)[SHAPE.predicted :]
    assert not unused.any()
    assert not np.asarray(gradient["head"]["kernel"][...])[:, SHAPE.predicted :].any()


def test_increment_head_without_decoder_is_persistence():
    shape = ModelShape(grid=(8, 12), channels=8, predicted=5, patch=(1, 3), head="increment", **SIZES)
    mesh = make_mesh(1, 1, 1)
    params, apply = make(shape, mesh, tendency=[0.3] * 8)
    zero = jax.tree.map(jnp.zeros_like, {name: params[name] for name in ("decode_kernel", "decode_bias")})
    x = fields(mesh, shape)
    with use_mesh(mesh):
        moved = jax.jit(apply)(params, x)
        for name, value in zero.items():
            params[name] = value
        still = jax.jit(apply)(params, x)
    np.testing.assert_array_equal(np.asarray(still)[:, :5], np.asarray(x)[:, :5])
    assert np.abs(np.asarray(moved - x)[:, :5]).max() > 0.01


def test_token_mixing_reaches_the_globe_and_no_mixing_stays_in_the_token():
    shape = ModelShape(grid=(8, 12), channels=4, predicted=4, patch=(1, 3), head="increment", **{**SIZES, "blocks": 1})
    mesh = make_mesh(1, 1, 1)
    params, apply = make(shape, mesh, tendency=[0.3] * 4)
    x = fields(mesh, shape, batch=1)

    point = np.zeros((1, 4, 8, 12), np.float32)
    point[0, 0, 3, 4] = 1.0

    def reached(params):
        with use_mesh(mesh):
            at_one_point = jax.jit(jax.grad(lambda x, params: (apply(params, x) * point).sum()))
            gradient = at_one_point(x, params)
        return np.abs(np.asarray(gradient)[0]).sum(0) > 0

    assert reached(params).all()
    params["blocks"][0]["token_mlp"] = jax.tree.map(jnp.zeros_like, params["blocks"][0]["token_mlp"])
    support = reached(params)
    assert support[3, 3:6].all()
    assert support.sum() == 3


def test_parameters_are_born_on_their_shards():
    """No device ever holds a whole kernel: the compiler's own account of the initialization."""
    shape = ModelShape(
        grid=(64, 64), channels=8, predicted=8, patch=(1, 8), embed=64, token_hidden=2048, embed_hidden=64, blocks=1
    )
    mesh = make_mesh(1, 4, 2)
    with use_mesh(mesh):
        init = jax.jit(lambda key: nnx.split(WeatherMixer(shape, rngs=nnx.Rngs(params=key)))[1])
        compiled = init.lower(jax.random.key(0)).compile()
    memory = compiled.memory_analysis()
    kernel = shape.tokens * shape.token_hidden * 4
    total = sum(np.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(compiled.out_info))
    assert memory.output_size_in_bytes < 1.02 * total / 8
    assert memory.temp_size_in_bytes < kernel


@pytest.mark.slow
def test_zero_noise_and_the_first_lead_are_the_model_without():
    shape, mesh = ModelShape(**{**vars(SHAPE), "noise": 3, "leads": 3}), make_mesh(2, 2, 2)
    params, apply = make(shape, mesh)
    x = fields(mesh, shape)
    noise = jax.device_put(np.ones((2, 3), np.float32), sharding(mesh, "batch", None))
    lead = jax.device_put(np.array([0, 2], np.int32), sharding(mesh, "batch"))
    with use_mesh(mesh):
        plain, born = jax.jit(apply)(params, x), jax.jit(apply)(params, x, noise=noise, lead=lead)
        kernel = params["blocks"][1]["channel_norm"]["condition_kernel"]
        params["blocks"][1]["channel_norm"]["condition_kernel"] = jax.tree.map(jnp.ones_like, kernel)
        zero = jax.jit(apply)(params, x, noise=0 * noise, lead=0 * lead)
        told = [jax.jit(apply)(params, x, **given) for given in (dict(lead=lead), dict(noise=noise))]
    plain, led, noisy = map(np.asarray, (plain, *told))
    assert kernel[...].shape == (2, 5, 16)
    np.testing.assert_allclose(born, plain, atol=1e-6)
    np.testing.assert_allclose(zero, plain, atol=1e-6)
    np.testing.assert_allclose(led[0], plain[0], atol=1e-6)
    assert np.abs(led - plain)[1].max() > 0.01 and np.abs(noisy - plain)[0].max() > 0.01
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters(shape)


def test_initial_values_do_not_depend_on_the_mesh():
    leaves = [jax.tree.leaves(make(SHAPE, make_mesh(*sizes))[0]) for sizes in ((1, 1, 1), (1, 4, 2), (2, 2, 2))]
    for one, other in zip(leaves[0], leaves[1], strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(leaves[0], leaves[2], strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_size_that_does_not_divide_is_named():
    shape = ModelShape(grid=(33, 12), channels=5, predicted=5, patch=(1, 3), **SIZES)
    with pytest.raises(
        ValueError, match="channels=5 is not divisible by tensor=4; patch_rows=33 is not divisible by domain=2"
    ):
        make(shape, make_mesh(1, 2, 4))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(patch=(1, 5)), "longitude=12 is not divisible by the patch's 5"),
        (dict(channels=1, predicted=1), "head='blend' mixes channels, and there is one: pad with"),
        (dict(head="other"), "head='other' is not one of"),
        (dict(predicted=9), "predicted=9 channels of 8"),
    ],
)
def test_sizes_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ModelShape(**{**dict(grid=(8, 12), channels=8, predicted=5, patch=(1, 3)), **SIZES, **wrong})
