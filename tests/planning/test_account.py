"""The account of memory: fair shares from shardings, what differentiation keeps, the compiler's own count."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from tests.tiny_training import make_tiny
from weathermixer.model.weathermixer import ModelShape, WeatherMixer
from weathermixer.parallel.mesh import make_abstract_mesh, make_mesh, sharding, use_mesh
from weathermixer.planning.account import format_account, format_bytes, held, kept_for_backward, make_account
from weathermixer.planning.work import contractions

MESHES = [(1, 1, 1), (1, 8, 1), (1, 1, 8), (32, 4, 2)]
SHAPE = ModelShape()  # the published 1.06 B model: nothing is allocated


def abstract_loss(shape, mesh, rematerialize):
    """A loss, its parameters and its input as ShapeDtypeStructs with shardings."""
    model = nnx.eval_shape(lambda: WeatherMixer(shape, rngs=nnx.Rngs(0), rematerialize=rematerialize))
    graph, params = nnx.split(model)
    size = (mesh.shape["data"], shape.channels, *shape.grid)
    x = jax.ShapeDtypeStruct(size, jnp.float32, sharding=sharding(mesh, "batch", "channel", "lat", "lon"))
    return lambda params, x: jnp.square(nnx.merge(graph, params)(x)).mean(), params, x


@pytest.mark.parametrize("sizes, rematerialize", [(sizes, "none") for sizes in MESHES] + [((2, 2, 2), "block")])
def test_nothing_is_kept_twice(sizes, rematerialize):
    mesh = make_abstract_mesh(*sizes)
    with jax.sharding.use_abstract_mesh(mesh):
        loss, params, x = abstract_loss(SHAPE, mesh, rematerialize)
        activations, copies = kept_for_backward(loss, params, x)
    entries = make_account(mesh, {"parameters": params, "copies": copies}, {"inputs": x, "activations": activations})
    ratios = {entry.part: entry.ratio for entry in entries}
    assert ratios["parameters"] <= 1.02 and ratios["inputs"] == 1.0
    assert 1.0 <= ratios["activations"] <= 1.02
    assert "more than once" not in format_account(entries)


def test_kernels_in_the_compute_dtype_are_copies_whoever_shares_them():
    """Cut over the instances as a batch is, they are none of its activations; four instances keep a quarter each."""
    sizes = {}
    for zero in ("none", "parameters"):
        tiny = make_tiny((4, 2, 1), compute_dtype="bfloat16", zero=zero)
        with use_mesh(tiny.mesh):
            state = jax.eval_shape(tiny.training.initial_state)
            rest = (tiny.make_batch(0), tiny.standardization, None)
            kept = kept_for_backward(tiny.training.loss, state.params, *rest)
        sizes[zero] = [sum(map(held, arrays)) for arrays in kept]
    assert sizes["parameters"][0] == sizes["none"][0]
    kernels = 2 * sum(c.count * c.kernel for c in contractions(tiny.training.shape) if c.name != "blend") / 2
    assert sizes["none"][1] - sizes["parameters"][1] == pytest.approx(0.75 * kernels, rel=0.01)


def test_an_array_held_twice_is_named():
    mesh = make_abstract_mesh(2, 2, 2)
    whole = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("domain", None)))
    (entry,) = make_account(mesh, {"parameters": [whole]}, {})
    assert (entry.instance, entry.device, entry.ratio) == (64 * 64 * 4, 64 * 64 * 2, 2.0)
    assert "2.000  stored more than once" in format_account([entry])
    # a count, as eval_shape describes it: of no sharding
    assert held(jax.ShapeDtypeStruct((), jnp.int32)) == 4
    # an input is divided among the instances: on one device of two instances of four it is a whole instance's
    (entry,) = make_account(mesh, {}, {"inputs": [whole]})
    assert entry.ratio == 4.0


def test_rematerialization_keeps_less():
    mesh = make_abstract_mesh(1, 2, 2)
    sizes = {}
    for rematerialize in ("none", "block"):
        with jax.sharding.use_abstract_mesh(mesh):
            loss, params, x = abstract_loss(SHAPE, mesh, rematerialize)
            activations, _ = kept_for_backward(loss, params, x)
            sizes[rematerialize] = sum(map(held, activations))
    assert sizes["block"] < 0.5 * sizes["none"]


def test_the_compilers_count_is_printed():
    mesh = make_mesh(1, 2, 1)
    with use_mesh(mesh):
        x = jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh, PartitionSpec("domain", None)))
        compiled = jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile()
    assert held(x) == 64
    text = format_account(make_account(mesh, {"parameters": x}, {}), compiled)
    assert "the compiled step, per device: arguments 64 B, results 0 B" in text


def test_bytes_are_readable():
    assert [format_bytes(n) for n in (12, 3456, 4.41e9, 1.5e6)] == ["12 B", "3.46 kB", "4.41 GB", "1.5 MB"]
