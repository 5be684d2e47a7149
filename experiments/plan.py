"""Plans a training run before anything is started: which meshes hold the model, how fast they are, what limits them.

  python -m experiments.plan --config=reference --devices=256 --device=h200 [--grid=0.125]

Every (data, domain, tensor) of the device count is judged by closed formulae (weathermixer/planning), in seconds on a
CPU: memory per device, bytes exchanged within and between nodes, bytes read per node, the predicted step and its share
of peak. Meshes that do not divide the model or do not fit in memory are listed with the numbers. Other sizes of the
published model: --config=reference:3.2b or :10b, or any field: --config.model.embed=8192.

--compile lowers the real training step for the best mesh on simulated devices and sets the compiler's account of memory
beside the formulae's. Machines are in weathermixer/planning/hardware.py; their numbers can be replaced:
--hardware=read_rate=40e9,node_size=4. --measured shows what is predicted for the steps that were timed.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from experiments import command_line, compiled, synthetic
from weathermixer.model.weathermixer import ModelShape
from weathermixer.parallel.zero import ZERO
from weathermixer.planning.hardware import HARDWARE, Hardware, find_hardware
from weathermixer.planning.measured import MEASURED, MODELS, Measured
from weathermixer.planning.meshes import StepOptions
from weathermixer.planning.plan import USABLE_MEMORY, Plan, Refusal, plan_meshes
from weathermixer.planning.time import step_time
from weathermixer.planning.work import forward_flops, parameters
from weathermixer.runs.settings import Settings


def step_options(settings: Settings, hardware: Hardware, *, batch: int, zero: str) -> StepOptions:
    """What of a config a step's costs depend on."""
    named, training = settings.model.compute_dtype, settings.training
    if training.members > 1:
        raise ValueError(
            f"plans are of one forecast a sample: for config.training.members={training.members} plan a batch so many "
            "times as large, with --config.training.members=1 --config.model.noise=0"
        )
    return StepOptions(
        batch=batch,
        repeats=training.lead_steps,
        rollout=max(training.rollout),
        accumulate=training.accumulate,
        muon=settings.optimizer.kind == "muon",
        compute_dtype=("float32" if hardware.name == "cpu" else "bfloat16") if named == "auto" else named,
        rematerialize=settings.model.rematerialize,
        schedule=settings.model.schedule,
        ema=training.ema_decay > 0,
        zero=zero,
        frames=settings.model.history + max(training.rollout),
        dropout=settings.model.dropout_rate > 0,
    )


def replaced(text: str) -> dict[str, float]:
    """The machine's numbers in "read_rate=40e9,node_size=4"."""
    try:
        return {n: int(v) if n == "node_size" else float(v) for n, v in command_line.pairs(text).items()}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NUMBER,..., such as read_rate=40e9") from None


def row(plan: Plan) -> dict[str, Any]:
    """One plan's numbers with their units in the names, for JSON."""
    time, layout = plan.time, plan.layout
    return {
        "data": layout.data,
        "domain": layout.domain,
        "tensor": layout.tensor,
        "batch": plan.batch,
        **{f"{part}_gb": size / 1e9 for part, size in plan.memory.items()},
        "memory_gb": sum(plan.memory.values()) / 1e9,
        "within_node_mb": plan.within_node / 1e6,
        "between_nodes_mb": plan.between_nodes / 1e6,
        "read_mb_per_process": plan.read / 1e6,
        "read_gb_per_s_to_hide": plan.read_rate_to_hide / 1e9,
        **{f"{field.name}_ms": 1e3 * getattr(time, field.name) for field in dataclasses.fields(time)[:-1]},
        "step_ms": 1e3 * time.total,
        "samples_per_s": plan.batch / time.total,
        "share_of_peak": time.share_of_peak,
    }


def format_plans(plans: list[Plan], top: int) -> str:
    """The best plans as a table, fastest per sample first."""
    short = {"parameters": "param", "moments": "mom", "gradients": "grad", "activations": "act", "temporaries": "temp"}
    rows = []
    for plan in plans[: top or None]:
        t, memory = plan.time, plan.memory
        parts = {("GB per device", short.get(part, part)): f"{size / 1e9:.2f}" for part, size in memory.items()}
        milliseconds = {
            "prod": t.products, "elem": t.elementwise, "optim": t.optimizer, "exch": t.exchange_exposed,
            "hid": t.exchange_hidden, "read": t.read_exposed, "hid ": t.read_hidden, "all": t.total,
        }  # fmt: skip
        rows.append(
            {("", "data x domain x tensor"): str(plan.layout), ("", "batch"): plan.batch}
            | parts
            | {("GB per device", "total"): f"{sum(memory.values()) / 1e9:.2f}"}
            | {("MB received", "node"): f"{plan.within_node / 1e6:.0f}"}
            | {("MB received", "net"): f"{plan.between_nodes / 1e6:.0f}"}
            | {("reading", "MB/proc"): f"{plan.read / 1e6:.0f}"}
            | {("reading", "GB/s"): f"{plan.read_rate_to_hide / 1e9:.1f}"}
            | {("ms of a step", name): f"{1e3 * seconds:.1f}" for name, seconds in milliseconds.items()}
            | {("speed", "sample/s"): f"{plan.batch / t.total:.1f}", ("speed", "peak"): f"{t.share_of_peak:.0%}"}
        )
    return pd.DataFrame(rows, columns=pd.MultiIndex.from_tuples(rows[0])).to_string(index=False)


def format_refusals(refusals: list[Refusal]) -> str:
    """One line per refused mesh, with its first reasons."""
    width = max(len(str(refusal.layout)) for refusal in refusals)
    lines = []
    for refusal in refusals:
        more = f" (and {len(refusal.reasons) - 2} more)" if len(refusal.reasons) > 2 else ""
        lines.append(f"  {refusal.layout!s:>{width}}  {'; '.join(refusal.reasons[:2])}{more}")
    return "\n".join(lines)


def format_measured(cases: Iterable[Measured]) -> str:
    """The steps that were timed, each beside its prediction."""
    lines = []
    for case in cases:
        shape = ModelShape(**MODELS[case.model])
        predicted = 1e3 * step_time(shape, case.layout, case.options, find_hardware(case.device)).total
        lines.append(
            f"{case.device}, {case.layout}, {case.model}: predicted {predicted:.1f} ms, measured {case.step_ms:.1f} ms "
            f"by `{case.command}`, ratio {predicted / case.step_ms:.2f} ({case.software})"
        )
    return "\n".join(lines)


def header(settings: Settings, shape: ModelShape, options: StepOptions, hardware: Hardware) -> str:
    """What is planned, and for which machine."""
    lat, lon = shape.grid
    rates = f"{hardware.peak(options.compute_dtype) / 1e12:.0f} TFLOP/s {options.compute_dtype}"
    return "\n".join(
        [
            f"model: {parameters(shape) / 1e9:.2f} B parameters, {lat} x {lon} points, {shape.channels} channels, "
            f"patch {shape.patch[0]} x {shape.patch[1]}: {shape.tokens} tokens of {shape.embed}; forward "
            f"{forward_flops(shape, repeats=options.repeats) / 1e12:.2f} TFLOP per sample, training three times that",
            f"step: rematerialize={options.rematerialize}, schedule={options.schedule}, zero={options.zero}, "
            f"ema={options.ema}, float32 parameters and moments",
            f"{hardware.name}: {rates} (products reach {100 * hardware.achieved_products:.0f} %), "
            f"{hardware.memory_bytes / 1e9:.0f} GB ({100 * USABLE_MEMORY:.0f} % usable) at "
            f"{hardware.memory_rate / 1e12:.2f} TB/s; per device {hardware.node_rate / 1e9:.0f} GB/s within nodes of "
            f"{hardware.node_size}, {hardware.network_rate / 1e9:.0f} GB/s between; storage "
            f"{hardware.read_rate / 1e9:.0f} GB/s per node",
        ]
    )


def make_parser() -> command_line.Parser:
    """The command line's options."""
    parser = command_line.make_parser("experiments.plan", __doc__)
    command_line.add_config(parser, required=False)
    command_line.add_data(parser, "default: a grid and the config's channels, or ERA5's")
    command_line.add_grid(parser, default=(720, 1440))
    add, least = parser.add_argument, command_line.integer
    add("--devices", type=least(1), default=1, metavar="N", help="how many devices; default: 1")
    add("--device", default="h200", choices=sorted(HARDWARE), help="which machine; default: h200")
    add("--hardware", type=replaced, default={}, metavar="NAME=NUMBER,...", help="numbers of the machine to replace")
    batch = parser.add_mutually_exclusive_group()
    about = "batch = this times the mesh's data axis; default: 1"
    batch.add_argument("--samples-per-instance", type=least(1), default=1, metavar="N", help=about)
    batch.add_argument("--batch-size", type=least(1), metavar="N", help="instead: the same batch on every mesh")
    add("--zero", choices=ZERO, help="what is cut over data too; default: the config's")
    add("--top", type=least(0), default=12, metavar="N", help="how many meshes the table shows; 0: all; default: 12")
    add("--compile", action="store_true", help="compile the best mesh's step on simulated devices and compare memory")
    add("--measured", action="store_true", help="show the predictions for the steps that were timed, and nothing else")
    add("--json", type=command_line.output_file, metavar="FILE", help="plans and refusals are written to this file")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.measured:
        print(format_measured(MEASURED))
        return
    if options.config is None:
        parser.error("--config says which model to plan; --measured shows the steps that were timed")
    settings = command_line.read_settings(options)
    hardware = find_hardware(options.device, **options.hardware)
    if not options.data:  # on a grid finer than 0.25 degrees the patch grows to cover as much
        patch = tuple(max(1, options.grid[0] // 720) * size for size in settings.model.patch)
        settings = settings.replace({"model.patch": patch})
    shape, channel_set = synthetic.find_sizes(settings, data=options.data, grid=options.grid)
    step = step_options(
        settings,
        hardware,
        batch=options.batch_size or options.samples_per_instance,
        zero=options.zero or settings.mesh.zero,
    )
    samples = 0 if options.batch_size else options.samples_per_instance
    plans, refusals = plan_meshes(shape, options.devices, step, hardware, samples_per_instance=samples)
    print(header(settings, shape, step, hardware))
    if plans:
        print_plans(plans, shape, step, hardware, devices=options.devices, top=options.top)
    if refusals:
        print(f"\n{len(refusals)} refused:\n{format_refusals(refusals)}")
    if options.json:
        refused = [{**dataclasses.asdict(r.layout), "reasons": r.reasons} for r in refusals]
        text = json.dumps({"plans": list(map(row, plans)), "refused": refused}, indent=1)
        options.json.write_text(text, encoding="utf-8")
    if not plans:
        raise ValueError(
            f"no mesh of {options.devices} x {hardware.name} holds this model: use more devices, "
            "--config.model.rematerialize=block or --zero=parameters"
        )
    if options.compile:
        print("\n" + compiled.compare(settings, shape, channel_set, plans[0], step))


def print_plans(
    plans: list[Plan], shape: ModelShape, step: StepOptions, hardware: Hardware, *, devices: int, top: int
) -> None:
    """The table of meshes, how to read it, and what was timed of them."""
    print(f"\n{len(plans)} meshes of {devices} devices, fastest per sample first:\n")
    print(format_plans(plans, top))
    print(
        "\nreading: MB per process (one per node) and step, and the rate that hides it; exch, read: what the step "
        "waits\nfor, beside it what hides; peak: three forward passes over step time and peak. How near such times "
        "are to\nmeasured ones: --measured."
    )
    planned = [(hardware.name, p.layout, shape, dataclasses.replace(step, batch=p.batch)) for p in plans]
    timed = [c for c in MEASURED if (c.device, c.layout, ModelShape(**MODELS[c.model]), c.options) in planned]
    if timed:
        print(f"\n{format_measured(timed)}")


if __name__ == "__main__":
    command_line.run(main)
