"""Draws what spreading a training step over up to 1024 devices costs each of them, for four schemes, by closed formula.

  python -m experiments.benchmark scaling --output=scaling.png [--validate]

The model is --config=reference:3.2b. Strong scaling divides a batch of eight samples over more and more devices; weak
scaling has a sample for each device. For every device count each scheme is laid out so that a device receives the
fewest bytes: ours on any mesh that divides the model, its channels padded where that helps; the published 2- and 4-way
scheme; Megatron-style tensor parallelism; FSDP; and beside them the least that any distribution of the products can
exchange (weathermixer/planning/baselines.py).

--validate compiles a small model's gradient on meshes of up to 8 simulated devices and sets the bytes that its
collectives receive beside the formula's.
"""

import itertools
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import matplotlib.ticker
import pandas as pd

from experiments import command_line
from experiments.configs.reference import SIZES
from weathermixer.model.shape import ModelShape
from weathermixer.planning.baselines import fsdp, lower_bound, megatron, ours, published
from weathermixer.planning.meshes import StepOptions
from weathermixer.planning.plan import layouts

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


def make_parser() -> command_line.Parser:
    """The command line's options."""
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
    draw(
        rows,
        args.output,
        f"One training step of the {SIZE} model, bfloat16 products. Strong: {SAMPLES} samples; weak: one per "
        "device. Each scheme on its mesh that receives least.",
    )
    print(f"figure: {args.output}")
    if args.validate:
        from experiments.benchmark import validate  # simulates devices, which planning does without

        print(validate.report())
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


def draw(rows: pd.DataFrame, path: Path, title: str) -> None:
    """Strong scaling above, on log scales, weak below; received, held and computed per device beside each other."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), constrained_layout=True)
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
                panel.yaxis.set_minor_formatter(matplotlib.ticker.LogFormatter(minor_thresholds=(1.5, 0.6)))
            else:
                panel.set_ylim(bottom=0)
            panel.grid(True, which="major", alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)
