"""Draws what spreading a training step over up to 1024 devices costs each of them, for four schemes, by closed formula.

  python -m experiments.benchmark scaling --output=scaling.png [--size=3.2b] [--validate]

Strong scaling divides a batch of eight samples over more and more devices; weak scaling has a sample for each device.
For every device count each scheme is laid out so that a device receives the fewest bytes: ours on any mesh that divides
the model, its channels padded where that helps; the published 2- and 4-way scheme; Megatron-style tensor parallelism;
FSDP; and beside them the least that any distribution of the products can exchange (weathermixer/planning/baselines.py).

--validate compiles a small model's gradient on meshes of up to 8 simulated devices and sets the bytes that its
collectives receive beside the formula's.
"""

import dataclasses
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import matplotlib.ticker
import pandas as pd

from experiments import command_line
from experiments.configs.reference import SIZES
from weathermixer.model.shape import ModelShape
from weathermixer.planning.baselines import PUBLISHED, Share, fsdp, lower_bound, megatron, ours, published
from weathermixer.planning.meshes import Layout, StepOptions, misfits
from weathermixer.planning.plan import layouts

COUNTS = [2**power for power in range(11)]
SAMPLES = 8  # of a step, strong scaling
STYLES = {  # name in the figure, colour, marker
    "ours": ("ours, any mesh", "#0b6e99", "o"),
    "published": ("published, 1-, 2- or 4-way", "#d9730d", "s"),
    "Megatron": ("Megatron-style", "#7a4fa3", "^"),
    "FSDP": ("FSDP, whole samples", "#4c8f3a", "D"),
    "lower bound": ("least for any distribution of the products", "#888888", None),
}
PANELS = {
    "received_gb": "GB received per device",
    "held_gb": "GB held per device",
    "tflop": "TFLOP of products per device",
}


def make_parser() -> command_line.Parser:
    """The command line's options."""
    parser = command_line.make_parser("experiments.benchmark scaling", __doc__)
    add, about = parser.add_argument, "of the published model, as in --config=reference:SIZE; default: 3.2b"
    add("--size", default="3.2b", choices=sorted(SIZES), help=about)
    about = "image of the figure; default: scaling.png"
    add("--output", type=command_line.output_file, default=Path("scaling.png"), metavar="FILE", help=about)
    add("--validate", action="store_true", help="count the bytes of compiled programs as well")
    return parser


def main(argv: list[str] | None = None) -> pd.DataFrame:
    """Computes, prints, draws and, where asked for, validates; returns the rows."""
    args = make_parser().parse_args(argv)
    rows = scaling_rows(ModelShape(**SIZES[args.size]))
    print("GB received per device and step (GB held) on the mesh\n" + format_rows(rows))
    draw(
        rows,
        args.output,
        f"One training step of the {args.size} model, bfloat16 products. Strong: {SAMPLES} samples; weak: one per "
        "device. Each scheme on its mesh that receives least.",
    )
    print(f"figure: {args.output}")
    if args.validate:
        from experiments.benchmark import validate  # simulates devices, which planning does without

        print(validate.report())
    return rows


def scaling_rows(shape: ModelShape) -> pd.DataFrame:
    """A row per way of scaling, device count and scheme: the mesh, and each device's share of the step."""
    rows = []
    for way in ("strong", "weak"):
        for devices in COUNTS:
            options = StepOptions(batch=SAMPLES if way == "strong" else devices)
            for scheme in STYLES:
                mesh, share = best(scheme, shape, devices, options) or ("", None)
                if share:
                    row = {"scaling": way, "devices": devices, "batch": options.batch, "scheme": scheme, "mesh": mesh}
                    sizes = {"received_gb": share.received / 1e9, "held_gb": share.held / 1e9}
                    rows.append(row | sizes | {"tflop": share.flops / 1e12})
    return pd.DataFrame(rows)


def best(scheme: str, shape: ModelShape, devices: int, options: StepOptions) -> tuple[str, Share] | None:
    """The scheme's way to spread the step that receives the fewest bytes, or None where it has none."""
    if scheme == "lower bound":
        return "", Share(lower_bound(shape, devices, options), 0.0, 0.0)
    candidates = []
    for layout in layouts(devices):
        ways, instances = layout.instance, layout.data
        if options.batch % instances:
            continue
        if scheme == "ours":
            padded = pad_channels(shape, layout)
            if padded is not None:
                candidates.append((str(layout), ours(padded, layout, options)))
        elif layout.domain > 1:  # the others know one model axis
            continue
        elif scheme == "published" and ways in PUBLISHED:
            candidates.append((f"{instances} x {ways}-way", published(shape, ways, instances, options)))
        elif scheme == "Megatron" and not (shape.token_hidden % ways or shape.embed_hidden % ways):
            candidates.append((f"{instances} x {ways}", megatron(shape, ways, instances, options)))
        elif scheme == "FSDP" and ways == 1:
            candidates.append((f"{devices}", fsdp(shape, devices, options)))
    return min(candidates, key=lambda found: found[1].received, default=None)


def pad_channels(shape: ModelShape, layout: Layout) -> ModelShape | None:
    """The shape with its channels padded, by at most a half, so that the mesh divides it; None where none does."""
    for channels in range(shape.channels, shape.channels * 3 // 2 + 1, 8):
        padded = dataclasses.replace(shape, channels=channels)
        if not misfits(padded, layout, layout.data):
            return padded
    return None


def format_rows(rows: pd.DataFrame) -> str:
    """A line for each number of devices, a column for each scheme."""
    cells = [f"{r.received_gb:.2f}" + (f" ({r.held_gb:.1f}) on {r.mesh}" if r.mesh else "") for r in rows.itertuples()]
    table = rows.assign(cell=cells).pivot(index=["scaling", "devices", "batch"], columns="scheme", values="cell")
    return table[list(STYLES)].fillna("-").to_string()


def draw(rows: pd.DataFrame, path: Path, title: str) -> None:
    """Strong scaling above, on log scales, weak below; received, held and computed per device beside each other."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), constrained_layout=True)
    for line, way in zip(axes, ("strong", "weak")):
        for panel, (field, label) in zip(line, PANELS.items()):
            for scheme, (name, colour, marker) in STYLES.items():
                here = rows[(rows.scaling == way) & (rows.scheme == scheme) & (rows[field] > 0)]
                if len(here):  # ours below, filled; where others do the same, their open markers lie upon it
                    first = scheme == "ours"
                    panel.plot(
                        here.devices, here[field], label=name, color=colour, marker=marker,
                        markersize=4 if first else 7, markerfacecolor=colour if first else "none",
                        linestyle="-" if marker else "--", linewidth=2.2 if first else 1.2,
                    )  # fmt: skip
            panel.set_xscale("log", base=2)
            panel.set_xticks(COUNTS, [str(count) for count in COUNTS], fontsize=8)
            if way == "strong":
                panel.set_yscale("log", base=10)
                panel.yaxis.set_major_formatter("{x:g}")
                panel.yaxis.set_minor_formatter(matplotlib.ticker.LogFormatter(minor_thresholds=(1.5, 0.6)))
            else:
                panel.set_ylim(bottom=0)
            panel.set_xlabel("devices")
            panel.set_title(f"{way} scaling: {label}", fontsize=10)
            panel.grid(True, which="major", alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)
