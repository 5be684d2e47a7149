"""Parameters and products against the published table and against the model itself."""

import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from weathermixer.model.weathermixer import ModelShape, WeatherMixer
from weathermixer.parallel.mesh import make_mesh, spec, use_mesh
from weathermixer.planning import work as cost
from weathermixer.planning.meshes import StepOptions, executed_flops

# forward TFLOP, embed, token_hidden / tokens, parameters in millions (Jigsaw's published sizes)
PUBLISHED = [
    (0.26, 368, 0.03125, 62),
    (0.53, 512, 0.125, 232),
    (0.99, 896, 0.125, 240),
    (2.0, 1600, 0.125, 260),
    (4.0, 2192, 0.25, 504),
    (8.0, 2832, 0.5, 980),
    (16.0, 4896, 0.5, 1100),
    (32.1, 6064, 1.0, 2090),
    (32.3, 8192, 0.5, 1400),
    (64.0, 10352, 1.0, 2570),
]


@pytest.mark.parametrize("tflop, embed, ratio, millions", PUBLISHED)
def test_published_table(tflop, embed, ratio, millions):
    shape = ModelShape(embed=embed, token_hidden=int(17280 * ratio), embed_hidden=embed)
    assert cost.forward_flops(shape) / 1e12 == pytest.approx(tflop, abs=0.05 if tflop >= 2 else 0.007)
    assert cost.parameters(shape) / 1e6 == pytest.approx(millions, rel=0.006)


def test_reference_by_hand():
    shape = ModelShape()
    assert (
        cost.forward_flops(shape)
        == 2 * 17280 * (4320 * 4320 + 3 * (2 * 8640 * 4320 + 2 * 4320 * 4320) + 2 * 4320 * 4320)
        + 2 * (17280 * 60) * 144 * 72
    )
    assert round(cost.forward_flops(shape) / 1e12, 2) == 13.57
    assert cost.train_flops(shape, batch=4) == 12 * cost.forward_flops(shape)
    # k passes through the blocks add k - 1 times their products
    blocks = 2 * 17280 * 3 * (2 * 8640 * 4320 + 2 * 4320 * 4320)
    assert cost.forward_flops(shape, repeats=4) == cost.forward_flops(shape) + 3 * blocks
    # rematerialization repeats three of a block's four products; the data's gradient is never made
    encode = 2 * 17280 * 4320 * 4320
    last = 2 * 17280 * 4320 * 4320
    executed = executed_flops(shape, StepOptions(batch=1))
    assert executed == 3 * cost.forward_flops(shape) - encode
    assert executed_flops(shape, StepOptions(batch=1, rematerialize="block")) - executed == blocks - 3 * last


@pytest.mark.parametrize("head", ["blend", "increment"])
def test_parameters_equal_the_models(head):
    shape = ModelShape((8, 16), 4, 3, (2, 4), embed=16, token_hidden=8, embed_hidden=24, blocks=2, head=head)
    with use_mesh(make_mesh(1, 1, 1)):
        model = nnx.eval_shape(lambda: WeatherMixer(shape, rngs=nnx.Rngs(0), tendency=[1.0] * 4))
    counts = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        counts[".".join(map(str, path))] = leaf.size
    assert sum(counts.values()) == cost.parameters(shape)
    assert sum(n for name, n in counts.items() if name.startswith("blocks")) == cost.block_parameters(shape)


def product_flops(jaxpr) -> int:
    """FLOPs of every dot_general in a traced program, inner programs included."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, result = equation.invars[0].aval, equation.outvars[0].aval
            total += 2 * math.prod(result.shape) * math.prod(left.shape[i] for i in contracted)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)  # of a ClosedJaxpr
            total += product_flops(inner) if hasattr(inner, "eqns") else 0
    return total


@pytest.mark.parametrize("rematerialize", ["none", "block"])
@pytest.mark.parametrize("head, repeats", [("blend", 1), ("increment", 2)])
def test_products_equal_the_programs(head, repeats, rematerialize):
    """The formulae are the products of the traced forward pass and of the traced gradient."""
    shape = ModelShape((8, 16), 4, 3, (2, 4), embed=16, token_hidden=8, embed_hidden=24, blocks=2, head=head)
    with use_mesh(make_mesh(1, 1, 1)):
        model = WeatherMixer(shape, rngs=nnx.Rngs(0), tendency=[1.0] * 4, rematerialize=rematerialize)
        graph, params = nnx.split(model)
        x = jnp.zeros((3, 4, 8, 16), out_sharding=spec("batch", "channel", "lat", "lon"))

        def forward(params, x):
            return nnx.merge(graph, params)(x, repeats=repeats)

        def gradient(params, x):
            return jax.grad(lambda params, x: forward(params, x).sum(), (0, 1))(params, x)

        traced = jax.make_jaxpr(forward)(params, x)
        differentiated = jax.make_jaxpr(gradient)(params, x)
    options = {"batch": 3, "repeats": repeats}
    # blend folds its vectors into its kernel: products as large as the kernel alone, 3e-9 of the published model's
    folded = 2e-3 if head == "blend" else 0
    assert product_flops(traced.jaxpr) == pytest.approx(cost.forward_flops(shape, **options), rel=folded)
    # a training step does not make the data's gradient
    data = 3 * 2 * shape.tokens * shape.features * shape.embed
    made = product_flops(differentiated.jaxpr) - data
    assert made == pytest.approx(executed_flops(shape, StepOptions(rematerialize=rematerialize, **options)), rel=folded)
