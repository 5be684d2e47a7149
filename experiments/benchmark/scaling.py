"""Draws what spreading a training step over up to 1024 devices costs each of them, for four schemes, by closed formula.

  python -m experiments.benchmark scaling --output=scaling.png [--csv=scaling.csv] [--size=3.2b] [--validate]

Strong scaling divides a batch of --batch-size samples over more and more devices; weak scaling has --samples-per-device
of them for each device. For every device count each scheme is laid out so that a device receives the fewest bytes: ours
on any mesh that divides the model, its channels padded where that helps; the published 2- and 4-way scheme;
Megatron-style tensor parallelism; FSDP; and beside them the least that any distribution of the products can exchange
(weathermixer/planning/baselines.py).

--validate compiles a small model's gradient on meshes of up to 8 simulated devices and sets the bytes that its
collectives receive beside the formula's.
"""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import matplotlib.ticker

from experiments import command_line
from experiments.configs.reference import SIZES
from weathermixer.model.weathermixer import ModelShape
from weathermixer.planning.baselines import PUBLISHED, Share, fsdp, lower_bound, megatron, ours, published
from weathermixer.planning.meshes import Layout, StepOptions, indivisible
from weathermixer.planning.plan import layouts

COUNTS = [2**power for power in range(11)]
SCHEMES = ("ours", "published", "Megatron", "FSDP")
COLOURS = {
    "ours": "#0b6e99",
    "published": "#d9730d",
    "Megatron": "#7a4fa3",
    "FSDP": "#4c8f3a",
    "lower bound": "#888888",
}
NAMES = {
    "ours": "ours, any mesh",
    "published": "published, 1-, 2- or 4-way",
    "Megatron": "Megatron-style",
    "FSDP": "FSDP, whole samples",
    "lower bound": "least for any distribution of the products",
}
MARKERS = {"ours": "o", "published": "s", "Megatron": "^", "FSDP": "D"}


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Computes, prints, draws and, where asked for, validates; returns the rows."""
    args = make_parser().parse_args(argv)
    rows = scaling_rows(make_shape(args.size), batch=args.batch_size, samples_per_device=args.samples_per_device)
    print(format_rows(rows))
    print(format_best(rows))
    if args.csv:
        with open(args.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    draw(
        rows,
        args.output,
        f"One training step of the {args.size} model, bfloat16 products. Strong: {args.batch_size} samples; weak: "
        f"{args.samples_per_device:g} per device. Each scheme on its mesh that receives least.",
    )
    print(f"figure: {args.output}")
    if args.validate:
        from experiments.benchmark import validate  # simulates devices, which planning does without

        print(validate.report())
    return rows


def make_parser() -> command_line.Parser:
    """The command line's options."""
    parser = command_line.make_parser("experiments.benchmark scaling", __doc__)
    add, file = parser.add_argument, dict(type=command_line.output_file, metavar="FILE")
    add("--size", default="3.2b", choices=sorted(SIZES), help="of the published model, as in --config=reference:SIZE")
    add("--batch-size", type=command_line.integer(1), default=8, metavar="N", help="samples of a step, strong scaling")
    about = "in weak scaling; below 1 instances span devices; default: 1"
    add("--samples-per-device", type=command_line.positive, default=1.0, metavar="N", help=about)
    add("--output", **file, default=Path("scaling.png"), help="image of the figure; default: scaling.png")
    add("--csv", **file, help="the rows are written to this file")
    add("--validate", action="store_true", help="count the bytes of compiled programs as well")
    return parser


def make_shape(size: str) -> ModelShape:
    """The published model's shape on 72 channels at 0.25 degrees."""
    return ModelShape(**SIZES[size])


def scaling_rows(shape: ModelShape, *, batch: int, samples_per_device: float) -> list[dict[str, Any]]:
    """One row per way of scaling, device count and scheme: the mesh, and each device's share of the step."""
    rows = []
    for way in ("strong", "weak"):
        for devices in COUNTS:
            samples = batch if way == "strong" else max(1, round(devices * samples_per_device))
            options = StepOptions(batch=samples)
            for scheme in SCHEMES:
                found = best(scheme, shape, devices, options)
                if found is not None:
                    mesh, share = found
                    rows.append(row(way, devices, samples, scheme, mesh, share))
            bound = Share(lower_bound(shape, devices, options), 0.0, 0.0)
            rows.append(row(way, devices, samples, "lower bound", "", bound))
    return rows


def row(way: str, devices: int, samples: int, scheme: str, mesh: str, share: Share) -> dict[str, Any]:
    """A row's fields, with units in their names."""
    return {
        "scaling": way,
        "devices": devices,
        "batch": samples,
        "scheme": scheme,
        "mesh": mesh,
        "received_gb": share.received / 1e9,
        "held_gb": share.held / 1e9,
        "tflop": share.flops / 1e12,
    }


def best(scheme: str, shape: ModelShape, devices: int, options: StepOptions) -> tuple[str, Share] | None:
    """The scheme's way to spread the step that receives the fewest bytes, or None where it has none."""
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
        if not indivisible(padded, layout, layout.data):
            return padded
    return None


def format_rows(rows: list[dict[str, Any]]) -> str:
    """Received and held GB per device, a column for each scheme."""
    lines = []
    for way in ("strong", "weak"):
        lines.append(f"{way} scaling: GB received per device and step, GB held, [mesh]")
        lines.append("devices batch " + "".join(f"{scheme:>30}" for scheme in (*SCHEMES, "lower bound")))
        for devices in COUNTS:
            here = {r["scheme"]: r for r in rows if r["scaling"] == way and r["devices"] == devices}
            cells = []
            for scheme in SCHEMES:
                r = here.get(scheme)
                cells.append(f"{r['received_gb']:.2f} {r['held_gb']:6.1f} [{r['mesh']}]" if r else "-")
            bound = here["lower bound"]
            cells.append(f"{bound['received_gb']:.2f}")
            lines.append(f"{devices:>7} {bound['batch']:>5} " + "".join(f"{cell:>30}" for cell in cells))
        lines.append("")
    return "\n".join(lines)


def format_best(rows: list[dict[str, Any]]) -> str:
    """Where each scheme receives the fewest bytes, and how far ours is from the bound there."""
    lines = []
    for way in ("strong", "weak"):
        winners: dict[str, list[int]] = {}
        for devices in COUNTS[1:]:
            here = [r for r in rows if r["scaling"] == way and r["devices"] == devices and r["scheme"] in SCHEMES]
            if here:  # all of them on the same bytes is a tie: one instance per device, nothing cut
                least = min(r["received_gb"] for r in here)
                names = " = ".join(r["scheme"] for r in here if r["received_gb"] <= 1.001 * least)
                winners.setdefault(names, []).append(devices)
        parts = ", ".join(f"{name} on {', '.join(map(str, counts))}" for name, counts in winners.items())
        lines.append(f"fewest bytes, {way}: {parts} devices")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Strong scaling above, on log scales, weak below; received, held and computed per device beside each other."""
    panels = [
        ("received_gb", "GB received per device"),
        ("held_gb", "GB held per device"),
        ("tflop", "TFLOP of products per device"),
    ]
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), constrained_layout=True)
    for line, way in zip(axes, ("strong", "weak")):
        for panel, (field, label) in zip(line, panels):
            for scheme in (*SCHEMES, "lower bound"):
                here = [r for r in rows if r["scaling"] == way and r["scheme"] == scheme]
                points = [(r["devices"], r[field]) for r in here if r[field] > 0]
                if points:  # ours below, filled; where others do the same, their open markers lie upon it
                    ours = scheme == "ours"
                    panel.plot(
                        *zip(*points), label=NAMES[scheme], color=COLOURS[scheme], marker=MARKERS.get(scheme),
                        markersize=4 if ours else 7, markerfacecolor=COLOURS[scheme] if ours else "none",
                        linestyle="--" if scheme == "lower bound" else "-", linewidth=2.2 if ours else 1.2,
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
