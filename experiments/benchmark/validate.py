"""Bytes that compiled programs exchange on simulated devices, beside the formulae that draw the scaling figure."""

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.compiled import simulate_devices
from weathermixer.cost.layout import Layout, StepOptions
from weathermixer.cost.traffic import contraction_transfers
from weathermixer.cost.work import contractions
from weathermixer.hlo import collectives
from weathermixer.mesh import make_mesh, sharding, use_mesh
from weathermixer.model import ModelShape, WeatherMixer

# Small enough to compile in seconds, wide enough for statistics and vectors to be small beside the contractions
SHAPE = ModelShape((16, 32), 8, 8, (1, 4), embed=128, token_hidden=32, embed_hidden=256, blocks=1, head="increment")
LAYOUTS = (Layout(1, 2, 1), Layout(1, 1, 2), Layout(1, 2, 2), Layout(1, 4, 2), Layout(1, 2, 4), Layout(1, 8, 1))
# what carries activations and kernels; sums of statistics and of vectors' gradients are all-reduces
MOVERS = ("collective-permute", "all-gather", "reduce-scatter", "all-to-all")


def formula_bytes(layout: Layout) -> float:
    """Bytes that a device receives for the contractions of one gradient, in float32."""
    options = StepOptions(batch=layout.data, compute_dtype="float32")
    transfers = [t for c in contractions(SHAPE) for t in contraction_transfers(c, layout, options)]
    return float(sum(transfer.bytes for transfer in transfers))


def compiled_bytes(layout: Layout) -> tuple[float, float]:
    """Bytes that a device receives in the compiled gradient: by what moves arrays, and handed to all-reduces."""
    mesh = make_mesh(layout.data, layout.domain, layout.tensor)
    with use_mesh(mesh):
        build = jax.jit(lambda: nnx.split(WeatherMixer(SHAPE, rngs=nnx.Rngs(0), tendency=[0.1] * SHAPE.channels))[1])
        graph = nnx.split(
            nnx.eval_shape(lambda: WeatherMixer(SHAPE, rngs=nnx.Rngs(0), tendency=[0.1] * SHAPE.channels))
        )[0]
        cut = sharding(mesh, "batch", "channel", "lat", "lon")
        x = jax.ShapeDtypeStruct((layout.data, SHAPE.channels, *SHAPE.grid), jnp.float32, sharding=cut)
        gradient = jax.jit(jax.grad(lambda params, x: jnp.square(nnx.merge(graph, params)(x)).sum()))
        found = collectives(gradient.lower(jax.eval_shape(build), x).compile().as_text())
    moved = sum(collective.received(layout.devices) for collective in found if collective.kind in MOVERS)
    return float(moved), float(sum(c.operand_bytes * c.times for c in found if c.kind not in MOVERS))


def report() -> str:
    """A line per mesh: the formula's bytes, the compiled program's, and what all-reduces take beside them."""
    simulate_devices(max(layout.devices for layout in LAYOUTS))
    lines = ["bytes received per device for one gradient of a small model, formula and compiled program:"]
    for layout in LAYOUTS:
        expected, (moved, reduced) = formula_bytes(layout), compiled_bytes(layout)
        lines.append(
            f"  {layout!s:>9}  formula {expected:>9.0f}  compiled {moved:>9.0f}  ratio {moved / expected:.4f}"
            f"  (statistics and vectors: all-reduces of {reduced:.0f})"
        )
    return "\n".join(lines)
