"""A training step compiled for a mesh of the real size on simulated CPU devices, to hold the plan's formulae to.

  python -m experiments.benchmark train --mesh=1,2,1 --hlo=step.hlo && python -m experiments.compiled step.hlo

shows of any compiled program which transfers run under products: in the GPU's schedule between a transfer's start and
its done, and by what depends on what, for compilers that do not split transfers in two.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from experiments import command_line, synthetic
from weathermixer.fields.variables import ChannelSet
from weathermixer.model.weathermixer import ModelShape
from weathermixer.parallel.mesh import make_mesh, use_mesh
from weathermixer.planning.account import format_bytes
from weathermixer.planning.hlo import free_products, hidden_transfers
from weathermixer.planning.meshes import StepOptions
from weathermixer.planning.plan import Plan
from weathermixer.runs.settings import Settings


def simulate_devices(number: int) -> None:
    """Makes the CPU show `number` devices; before jax is used. Raises ValueError where it is too late."""
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", number)
    except RuntimeError as error:
        if jax.device_count() < number:
            raise ValueError(f"jax shows {jax.device_count()} devices, not {number}, and was used already") from error


def compile_step(settings: Settings, shape: ModelShape, channel_set: ChannelSet, mesh: Mesh) -> Any:
    """The compiled training step of a config on a mesh, from descriptions of its arguments alone."""
    with use_mesh(mesh):
        training = synthetic.make_training(settings, shape, channel_set, mesh)
        arguments = synthetic.describe_arguments(training, channel_set, mesh, batch_size=settings.training.batch_size)
        return training.train_step.lower(*arguments).compile()


def compare(settings: Settings, shape: ModelShape, channel_set: ChannelSet, plan: Plan, options: StepOptions) -> str:
    """A plan's memory by formula beside the compiler's, for the step compiled on as many simulated devices."""
    layout, parts = plan.layout, plan.memory
    simulate_devices(layout.devices)
    planned = {
        "training.batch_size": plan.batch,
        "model.compute_dtype": options.compute_dtype,
        "mesh.zero": options.zero,
    }
    settings = settings.replace(planned)
    mesh = make_mesh(layout.data, layout.domain, layout.tensor)
    memory = compile_step(settings, shape, channel_set, mesh).memory_analysis()
    held = sum(parts[name] for name in ("parameters", "moments", "ema"))
    held += parts["batch"] / 2 + shape.channels * shape.grid[0] * shape.grid[1] * 4 / layout.instance
    passing = parts["gradients"] + parts["activations"] + parts["temporaries"]
    rows = [
        ("state, batch, static fields", held, memory.argument_size_in_bytes),
        ("gradients, activations, temporaries", passing, memory.temp_size_in_bytes),
    ]
    lines = [f"the step compiled for {layout} simulated CPU devices, bytes per device:"]
    for what, ours, theirs in rows:
        lines.append(f"  {what:<36} formula {format_bytes(ours):>8}   compiler {format_bytes(theirs):>8}")
    lines.append("  (the CPU's compiler orders and fuses its work otherwise than a GPU's: the second line is a guide)")
    return "\n".join(lines)


def format_transfers(text: str) -> str:
    """How many transfers of a program have how many products between start and done, or free to run meanwhile."""
    lines = [
        f"{times:>4} x {kind}-start ... {products} products ... {kind}-done"
        for (kind, products), times in sorted(Counter(hidden_transfers(text)).items())
    ]
    lines += [
        f"{times:>4} x {kind}, which {products} products neither feed nor wait for"
        for (kind, products), times in sorted(Counter(free_products(text)).items())
    ]
    return "\n".join(lines)


def make_parser() -> command_line.Parser:
    """The command line's options."""
    parser = command_line.make_parser("experiments.compiled", __doc__)
    parser.add_argument("program", type=Path, help="a compiled program's text, as benchmark train --hlo=FILE writes it")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    print(format_transfers(make_parser().parse_args(arguments).program.read_text(encoding="utf-8")))


if __name__ == "__main__":
    command_line.run(main)
