"""Draws what spreading a training step over up to 1024 devices costs each of them, for four schemes, by closed formula.

  python -m experiments.benchmark scaling --output=scaling.png [--validate]

The model is --config=reference:3.2b. Strong scaling divides a batch of eight samples over more and more devices; weak
scaling has a sample for each device. For every device count each scheme is laid out so that a device receives the
fewest bytes: ours on any mesh that divides the model, its channels padded where that helps; the published 2- and 4-way
scheme; Megatron-style tensor parallelism; FSDP; and beside them the least that any distribution of the products can
exchange (weathermixer/planning/baselines.py).

--validate compiles a small model's step on meshes of up to 8 simulated devices and sets the bytes that its collectives
receive beside the formulae's. Every collective is put into a class, by the devices that it spans and by what it
carries: the chunks of the contractions, statistics of the norms, the head's fields, vectors (biases, scales and their
gradients), the gradients' sum over instances, and scalars (loss, gradient norms), for which there is no formula.
"""

import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from experiments import command_line, plan, synthetic
from experiments.configs.reference import SIZES
from weathermixer import ModelShape, Settings, StepOptions, find_hardware, make_mesh
from weathermixer.parallel.mesh import use_mesh
from weathermixer.planning.baselines import fsdp, lower_bound, megatron, ours, published
from weathermixer.planning.hlo import Collective, collectives
from weathermixer.planning.meshes import Layout
from weathermixer.planning.plan import layouts
from weathermixer.planning.traffic import step_transfers
from weathermixer.planning.work import contractions

SIZE = "3.2b"
COUNTS = [2**power for power in range(11)]
SAMPLES = 8  # of a step, strong scaling
SCHEMES = {  # name in the figure -> each device's share of a step on a mesh, colour, line and marker
    "ours, any mesh": (ours, "#0b6e99", "o-"),
    "published, 1-, 2- or 4-way": (published, "#d9730d", "s-"),
    "Megatron-style": (megatron, "#7a4fa3", "^-"),
    "FSDP, whole samples": (fsdp, "#4c8f3a", "D-"),
    "least for any distribution of the products": (lower_bound, "#888888", "--"),
}
PANELS = {
    "received_gb": "GB received per device",
    "held_gb": "GB held per device",
    "tflop": "TFLOP of products per device",
}

# of the compiled programs
LAYOUTS = (Layout(1, 2, 1), Layout(1, 1, 2), Layout(1, 2, 2), Layout(1, 4, 2), Layout(1, 2, 4), Layout(1, 8, 1))
GRID = (16, 32)
# small enough to compile in seconds, wide enough for vectors to be small beside the contractions
SMALL = {
    "data.channels": tuple(f"geopotential_{level}" for level in (1000, 850, 700, 500, 300, 200, 100)),
    "data.static": ("land_sea_mask",),
    "model.patch": (1, 4),
    "model.embed": 128,
    "model.token_hidden": 32,
    "model.embed_hidden": 256,
    "model.blocks": 1,
    "model.head": "increment",
}
SCALARS = "scalars"


def make_parser() -> command_line.Parser:
    parser = command_line.make_parser("experiments.benchmark scaling", __doc__)
    add, about = parser.add_argument, "image of the figure; default: scaling.png"
    add("--output", type=command_line.output_file, default=Path("scaling.png"), metavar="FILE", help=about)
    add("--validate", action="store_true", help="count the bytes of compiled programs as well")
    return parser


def main(argv: list[str] | None = None) -> pd.DataFrame:
    """Computes, prints, draws and, where asked for, validates; returns the rows."""
    args = make_parser().parse_args(argv)
    rows = scaling_rows(ModelShape(**SIZES[SIZE]))
    print("GB received per device and step (GB held) on the mesh\n" + format_rows(rows))
    draw(rows, args.output)
    print(f"figure: {args.output}")
    if args.validate:
        print(validate())
    return rows


def scaling_rows(shape: ModelShape) -> pd.DataFrame:
    """A row per way of scaling, device count and scheme: the mesh that receives least, and a device's share there."""
    rows = []
    for way, devices, scheme in itertools.product(("strong", "weak"), COUNTS, SCHEMES):
        options = StepOptions(batch=SAMPLES if way == "strong" else devices)
        meshes = [layout for layout in layouts(devices) if options.batch % layout.data == 0]
        shares = [(SCHEMES[scheme][0](shape, layout, options), layout) for layout in meshes]
        if possible := [(share, layout) for share, layout in shares if share is not None]:
            share, layout = min(possible, key=lambda found: found[0].received)
            row = {"scaling": way, "devices": devices, "batch": options.batch, "scheme": scheme, "mesh": str(layout)}
            sizes = {"received_gb": share.received / 1e9, "held_gb": share.held / 1e9, "tflop": share.flops / 1e12}
            rows.append(row | sizes)
    return pd.DataFrame(rows)


def format_rows(rows: pd.DataFrame) -> str:
    """A line for each number of devices, a column for each scheme."""
    mesh = [f" ({held:.1f}) on {mesh}" if held else "" for held, mesh in zip(rows.held_gb, rows.mesh)]
    table = rows.assign(cell=rows.received_gb.map("{:.2f}".format) + mesh)
    table = table.pivot(index=["scaling", "devices", "batch"], columns="scheme", values="cell")
    return table[list(SCHEMES)].fillna("-").to_string()


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Strong scaling above, on log scales, weak below; received, held and computed per device beside each other."""
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    axes = figure.subplots(2, 3)
    _, colours, styles = zip(*SCHEMES.values())
    for (way, of_way), line in zip(rows.groupby("scaling"), axes):
        for panel, (field, label) in zip(line, PANELS.items()):
            table = of_way[of_way[field] > 0].pivot(index="devices", columns="scheme", values=field)
            table = table.reindex(columns=list(SCHEMES))
            # open markers: where others do the same as ours, theirs lie upon it
            look = dict(color=colours, style=list(styles), fillstyle="none", markersize=6, linewidth=1.4, legend=False)
            table.plot(ax=panel, logy=way == "strong", title=f"{way} scaling: {label}", **look)
            panel.set_xscale("log", base=2)
            panel.set_xticks(COUNTS, COUNTS, fontsize=8)
            if way == "strong":
                panel.yaxis.set_major_formatter("{x:g}")
                panel.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.6)))
            else:
                panel.set_ylim(bottom=0)
            panel.grid(True, which="major", alpha=0.3)
    axes[0][0].legend(fontsize=8)
    about = (
        f"One training step of the {SIZE} model, bfloat16 products. Strong: {SAMPLES} samples; weak: one per device."
    )
    figure.suptitle(f"{about} Each scheme on its mesh that receives least.", fontsize=11)
    figure.savefig(path, dpi=130)


def classify(found: Collective, shape: ModelShape, layout: Layout, options: StepOptions) -> str:
    """The class of a collective: the name of the transfers that it belongs to (expected_bytes)."""
    reach, products = max(found.group) - min(found.group), contractions(shape)
    if found.elements == 1:
        return SCALARS
    if "shard_map" in found.origin and found.kind != "all-reduce":
        axis = "data" if reach >= layout.instance else "domain" if reach >= layout.tensor else "tensor"
        return f"contractions over {axis}"
    if reach >= layout.instance:
        kernels = {c.kernel // c.operands // layout.instance for c in products if c.name != "blend"}
        if found.kind == "all-gather":
            return "parameters over data" if found.elements * layout.data in kernels else "vectors"
        return "gradients over data" if found.elements in kernels else "vectors"
    instance = options.batch // layout.data
    points = instance * shape.grid[0] * shape.grid[1] // layout.domain
    classes = {instance * shape.tokens // layout.domain: "norms", points: "head's norms"}
    classes |= {points * shape.channels: "head", points * shape.channels // layout.tensor: "head"}
    return classes.get(found.elements, "vectors") if reach < layout.tensor else "vectors"


def expected_bytes(shape: ModelShape, layout: Layout, options: StepOptions) -> Counter[str]:
    """Bytes that a device receives by class, by the formulae."""
    expected = Counter()
    axes = {layout.replicas: "data", layout.contracted("token"): "domain", layout.contracted("channel"): "tensor"}
    for transfer in step_transfers(shape, layout, options):
        name = f"contractions over {axes[transfer.group]}" if ": " in transfer.name else transfer.name
        expected[name] += transfer.bytes
    return expected


def compiled_bytes(text: str, shape: ModelShape, layout: Layout, options: StepOptions) -> Counter[str]:
    """Bytes that a device receives by class, in a compiled program.

    XLA:CPU makes a sum that is cut out of a whole sum and a slice; it counts as what the cut sum receives.
    """
    received, summed_and_cut = Counter(), {"head"} | ({"gradients over data"} if options.zero != "none" else set())
    for found in collectives(text):
        name = classify(found, shape, layout, options)
        received[name] += found.received / (2 if found.kind == "all-reduce" and name in summed_and_cut else 1)
    return received


def validate() -> str:
    """A line per mesh: the formulae's bytes, the compiled step's, their ratio, and the class that is furthest off."""
    synthetic.simulate_devices(max(layout.devices for layout in LAYOUTS))
    settings, rows = Settings().replace(SMALL), []
    options = plan.step_options(settings, find_hardware("cpu"), batch=settings.training.batch_size)
    for layout in LAYOUTS:
        mesh = make_mesh(*dataclasses.astuple(layout))
        with use_mesh(mesh):
            problem = synthetic.make_problem(settings, mesh, grid=GRID)
            sizes = problem.training.shape, layout, options
            found = compiled_bytes(problem.compile().as_text(), *sizes)
        expected, scalars = expected_bytes(*sizes), found.pop(SCALARS)
        ratios = {name: found[name] / expected[name] for name in expected}
        worst = max(ratios, key=lambda name: abs(ratios[name] - 1))
        row = {"mesh": layout, "formulae": expected.total(), "compiled": found.total()}
        row |= {"ratio": f"{found.total() / expected.total():.4f}", "scalars": scalars}
        rows.append(row | {"ratio at worst": f"{ratios[worst]:.4f}", "of": worst})
    about = "bytes received per device in one training step of a small model, formulae and compiled program:"
    return f"{about}\n{pd.DataFrame(rows).to_string(index=False, float_format='{:.0f}'.format)}"
