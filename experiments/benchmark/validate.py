"""What compiled training steps exchange on simulated devices, beside the formulae of the plans and the scaling figure.

Every collective of the step is put into a class, by the devices that it spans and by what it carries: the chunks of the
contractions, statistics of the norms, the head's fields, vectors (biases, scales and their gradients), the gradients'
sum over instances, and scalars (loss, gradient norms), for which there is no formula.
"""

import dataclasses
from collections import defaultdict
from typing import Any

from experiments import plan, synthetic
from weathermixer.fields.variables import ChannelSet
from weathermixer.model.shape import ModelShape
from weathermixer.parallel.mesh import make_mesh
from weathermixer.planning.hardware import find_hardware
from weathermixer.planning.hlo import Collective, collectives
from weathermixer.planning.meshes import Layout, StepOptions
from weathermixer.planning.traffic import step_transfers
from weathermixer.planning.work import contractions
from weathermixer.runs.settings import Settings, make_settings

LAYOUTS = (Layout(1, 2, 1), Layout(1, 1, 2), Layout(1, 2, 2), Layout(1, 4, 2), Layout(1, 2, 4), Layout(1, 8, 1))
GRID = (16, 32)
SCALARS = "scalars"


@dataclasses.dataclass(frozen=True)
class Problem:
    """A config's training step on a mesh, as the formulae and the compiler see it."""

    settings: Settings
    shape: ModelShape
    channel_set: ChannelSet
    layout: Layout
    options: StepOptions


def small_settings(**changes: Any) -> Settings:
    """A model small enough to compile in seconds, wide enough for vectors to be small beside the contractions.

    `changes` are fields of config.model, .training or .mesh.
    """
    values = Settings().values()
    values["data"] |= {
        "channels": tuple(f"geopotential_{level}" for level in (1000, 850, 700, 500, 300, 200, 100)),
        "static": ("land_sea_mask",),
    }
    values["model"] |= dict(patch=(1, 4), embed=128, token_hidden=32, embed_hidden=256, blocks=1, head="increment")
    for name, value in changes.items():
        (part,) = (part for part in ("model", "training", "mesh") if name in values[part])
        values[part][name] = value
    return make_settings(values)


def make_problem(settings: Settings, layout: Layout) -> Problem:
    shape, channel_set = synthetic.find_sizes(settings, data=None, grid=GRID)
    options = plan.step_options(settings, find_hardware("cpu"), batch=settings.training.batch_size)
    return Problem(settings, shape, channel_set, layout, options)


def classify(found: Collective, problem: Problem) -> str:
    """The class of a collective: the name of the transfers that it belongs to (expected_bytes)."""
    shape, layout = problem.shape, problem.layout
    reach, products = max(found.group) - min(found.group), contractions(shape)
    if found.elements == 1:
        return SCALARS
    if reach >= layout.instance:
        kernels = {c.kernel // c.operands // layout.instance for c in products if c.name != "blend"}
        sums = "gradients over data" if found.elements in kernels else "vectors"
        return "parameters over data" if found.kind == "all-gather" else sums
    if "shard_map" in found.origin and found.kind != "all-reduce":
        return f"contractions over {'tensor' if reach < layout.tensor else 'domain'}"
    instance = problem.options.batch // layout.data
    points = instance * shape.grid[0] * shape.grid[1] // layout.domain
    classes = {instance * shape.tokens // layout.domain: "norms", points: "head's norms"}
    classes |= {points * shape.channels: "head", points * shape.channels // layout.tensor: "head"}
    return classes.get(found.elements, "vectors") if reach < layout.tensor else "vectors"


def expected_bytes(problem: Problem) -> dict[str, float]:
    """Bytes that a device receives by class, by the formulae."""
    expected: dict[str, float] = defaultdict(float)
    for transfer in step_transfers(problem.shape, problem.layout, problem.options):
        axis = "tensor" if transfer.group == problem.layout.contracted("channel") else "domain"
        expected[f"contractions over {axis}" if ": " in transfer.name else transfer.name] += transfer.bytes
    return dict(expected)


def compile_text(problem: Problem) -> str:
    """The compiled training step, for simulated devices."""
    mesh = make_mesh(*dataclasses.astuple(problem.layout))
    return synthetic.compile_step(problem.settings, problem.shape, problem.channel_set, mesh).as_text()


def compiled_bytes(text: str, problem: Problem) -> dict[str, float]:
    """Bytes that a device receives by class, in a compiled program.

    XLA:CPU makes a sum that is cut out of a whole sum and a slice; it counts as what the cut sum receives.
    """
    received: dict[str, float] = defaultdict(float)
    summed_and_cut = {"head"} | ({"gradients over data"} if problem.options.zero != "none" else set())
    for found in collectives(text):
        name = classify(found, problem)
        received[name] += found.received / (2 if found.kind == "all-reduce" and name in summed_and_cut else 1)
    return dict(received)


def report() -> str:
    """A line per mesh: the formulae's bytes, the compiled step's, their ratio, and the class that is furthest off."""
    synthetic.simulate_devices(max(layout.devices for layout in LAYOUTS))
    lines = ["bytes received per device in one training step of a small model, formulae and compiled program:"]
    for layout in LAYOUTS:
        problem = make_problem(small_settings(), layout)
        expected, found = expected_bytes(problem), compiled_bytes(compile_text(problem), problem)
        scalars, ratios = found.pop(SCALARS), {name: found.get(name, 0.0) / expected[name] for name in expected}
        worst = max(ratios, key=lambda name: abs(ratios[name] - 1))
        ours, theirs = sum(expected.values()), sum(found.values())
        lines.append(
            f"  {layout!s:>9}  formulae {ours:>9.0f}  compiled {theirs:>9.0f}  ratio {theirs / ours:.4f}  "
            f"(by class at worst {ratios[worst]:.4f}, {worst}; scalars {scalars:.0f})"
        )
    return "\n".join(lines)
