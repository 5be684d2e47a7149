"""Memory in closed form against hand-made figures and against what the traced model keeps."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from weathermixer.model.weathermixer import ModelShape, WeatherMixer
from weathermixer.parallel.mesh import make_abstract_mesh, sharding
from weathermixer.parallel.zero import cut_instances
from weathermixer.planning.account import held, kept_for_backward
from weathermixer.planning.memory import activation_bytes, memory_parts
from weathermixer.planning.meshes import Layout, StepOptions, kept_parameters
from weathermixer.planning.work import contractions, parameters

BIG = ModelShape(embed=4896, embed_hidden=4896)  # the published 16-TFLOP model


def test_state_by_hand():
    n = parameters(BIG) * 4
    parts = memory_parts(BIG, Layout(4, 2, 2), StepOptions(batch=4, ema=True))
    assert [parts[name] for name in ("parameters", "moments", "ema", "gradients")] == [n / 4, n / 2, n / 4, n / 4]
    cut = memory_parts(BIG, Layout(4, 2, 2), StepOptions(batch=4, ema=True, zero="parameters"))
    assert [cut[name] for name in ("parameters", "moments", "ema", "gradients")] == [n / 16, n / 8, n / 16, n / 16]
    # two frames of 16-bit values in use and two put on the devices ahead
    assert parts["batch"] == 4 * 72 * 720 * 1440 * 2 / 4


@pytest.mark.parametrize("mixing", ["dense", "circulant"])
@pytest.mark.parametrize("sizes", [(4, 2, 1), (2, 1, 2), (3, 2, 1), (5, 1, 1), (64, 1, 1)], ids=str)
def test_kernels_are_shared_where_they_divide(sizes, mixing):
    """Between 5 instances, or 64, some of these kernels cannot be cut, and each keeps all of them."""
    shape = ModelShape((24, 48), 8, 6, (2, 4), embed=48, token_hidden=96, embed_hidden=64, token_mixing=mixing)
    mesh, options = make_abstract_mesh(*sizes), StepOptions(batch=sizes[0], zero="parameters")
    with jax.sharding.use_abstract_mesh(mesh):
        params = nnx.split(nnx.eval_shape(lambda: WeatherMixer(shape, rngs=nnx.Rngs(0))))[1]
        kept = sum(map(held, jax.tree.leaves(jax.eval_shape(cut_instances, params)))) / 4
    vectors = parameters(shape) - sum(c.count * c.kernel // c.columns for c in contractions(shape) if c.name != "blend")
    assert kept_parameters(shape, Layout(*sizes), options) == pytest.approx(kept, abs=vectors / sizes[1] / sizes[2])
    alone = parameters(shape) / sizes[1] / sizes[2]
    assert kept < 1.1 * alone / sizes[0] if sizes[0] < 5 else kept > 2 * alone / sizes[0]


def test_rollouts_accumulation_and_muon_by_hand():
    layout, state = Layout(1, 2, 2), 72 * 720 * 1440 * 4 / 4
    one, four, twelve, parts, muon, half = (
        memory_parts(BIG, layout, StepOptions(batch=4, **options))
        for options in (
            {},
            dict(rollout=4),
            dict(rollout=12),
            dict(accumulate=4),
            dict(muon=True),
            dict(momentum_bytes=2),
        )
    )
    assert twelve["activations"] - four["activations"] == pytest.approx(8 * 4 * 1.5 * state)
    assert four["activations"] - one["activations"] == pytest.approx(3 * 4 * 1.5 * state)
    assert parts["activations"] == one["activations"] / 4 and parts["gradients"] == 2 * one["gradients"]
    kernels = 3 * (2 * 17280 * 8640 + 2 * 4896 * 4896)
    assert one["moments"] - muon["moments"] == pytest.approx(kernels * 4 / 4)
    assert half["moments"] == pytest.approx(0.75 * one["moments"])
    with pytest.raises(ValueError, match="accumulate=3 does not divide batch=4"):
        StepOptions(batch=4, accumulate=3)


@pytest.mark.parametrize("rematerialize", ["none", "block"])
def test_all_kernels_may_be_gathered_ahead(rematerialize):
    """In XLA's buffers of the reference model on 8 x 1 x 1 all of them are, in the forward pass, before the blocks."""
    one, shared = (
        memory_parts(BIG, Layout(8, 1, 1), StepOptions(batch=8, rematerialize=rematerialize, zero=zero))["temporaries"]
        for zero in ("none", "parameters")
    )
    kernels = sum(c.count * c.kernel for c in contractions(BIG) if c.name != "blend")
    assert shared - one == pytest.approx(2 * (kernels - parameters(BIG) * 7 / 8), rel=1e-3)  # and copies of one part


CASES = [  # head, repeats, compute dtype, rematerialize, dropout rate
    ("blend", 1, "bfloat16", "none", 0.0),
    ("increment", 2, "float32", "none", 0.1),
    ("increment", 2, "bfloat16", "block", 0.1),
]


@pytest.mark.parametrize("head, repeats, compute_dtype, rematerialize, rate", CASES)
def test_activations_are_what_differentiation_keeps(head, repeats, compute_dtype, rematerialize, rate):
    """The formula is the traced program's count, but for the norms' statistics of one number a row."""
    sizes = dict(embed=1000, token_hidden=3000, embed_hidden=2000, head=head, dropout_rate=rate)
    shape, mesh = ModelShape(**sizes), make_abstract_mesh(1, 1, 1)
    options = StepOptions(
        batch=1, repeats=repeats, compute_dtype=compute_dtype, rematerialize=rematerialize, dropout=rate > 0
    )
    dtype = jnp.dtype(compute_dtype)

    def make():
        return WeatherMixer(
            shape, rngs=nnx.Rngs(0), compute_dtype=dtype, rematerialize=rematerialize, tendency=[1.0] * shape.channels
        )

    def loss(params, x, key):
        state = 2 * x.astype(jnp.float32)  # standardized from what the archive holds
        return jnp.square(nnx.merge(graph, params)(state, repeats=repeats, key=key if rate else None)).sum()

    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.sharding.use_abstract_mesh(mesh):
        graph, params = nnx.split(nnx.eval_shape(make))
        cut = sharding(mesh, "batch", "channel", "lat", "lon")
        x = jax.ShapeDtypeStruct((1, 72, 720, 1440), jnp.float16, sharding=cut)
        kept, _ = kept_for_backward(loss, params, x, key)
    traced = sum(map(held, kept))
    assert activation_bytes(shape, options) == pytest.approx(traced, rel=0.01)
