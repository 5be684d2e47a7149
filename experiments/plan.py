"""Plans a training run before anything is started: which meshes hold the model, how fast they are, what limits them.

  python -m experiments.plan --config=reference --devices=256 --device=h200 [--grid=0.125]

Every (data, domain, tensor) of the device count is judged by closed formulae (weathermixer/planning), in seconds on a
CPU: memory per device, bytes exchanged within and between nodes, bytes read per node, the predicted step and its share
of peak. Meshes that do not divide the model or do not fit in memory are listed with the numbers. Other sizes of the
published model: --config=reference:3.2b or :10b, or any field: --config.model.embed=8192.

--compile lowers the real training step for the best mesh on simulated devices and sets the compiler's account of memory
beside the formulae's. --measured shows what is predicted for the steps that were timed; --transfers shows of a compiled
program (benchmark train --hlo=FILE) which transfers run under products: between start and done in a GPU's schedule.

A machine that is not among the devices is one of them with numbers replaced, each per device, in bytes/s and FLOP/s:

  python -m experiments.plan --config=reference --devices=4 --device=h100 --hardware=memory_bytes=94e9,node_size=4

bf16_flops, tf32_flops and fp8_flops are dense peaks, memory_rate and read_rate those of memory and of a node's storage,
node_rate and network_rate of the links within and between nodes, each way; achieved_products, achieved_copies,
achieved_elementwise and achieved_links are the shares of these that are reached, latency_seconds, contention and
gap_seconds what is lost (weathermixer/planning/hardware.py).
"""

import argparse
import dataclasses
import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd

from experiments import command_line, ends, plan_checks, synthetic
from weathermixer import ModelShape, Settings, StepOptions, find_hardware, plan_meshes
from weathermixer.planning.hardware import HARDWARE, Hardware
from weathermixer.planning.plan import USABLE_MEMORY, Plan
from weathermixer.planning.work import forward_flops, parameters
from weathermixer.runs import build
from weathermixer.runs.data import open_training_data
from weathermixer.runs.samples import find_starts

SHOWN = 12  # meshes in the table


def step_options(settings: Settings, hardware: Hardware, *, batch: int) -> StepOptions:
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
        momentum_bytes=jnp.dtype(settings.optimizer.momentum_dtype).itemsize,
        compute_dtype=("float32" if hardware.name == "cpu" else "bfloat16") if named == "auto" else named,
        rematerialize=settings.model.rematerialize,
        schedule=settings.model.schedule,
        ema=training.ema_decay > 0,
        zero=settings.mesh.zero,
        frames=settings.model.history + max(training.rollout),
        dropout=settings.model.dropout_rate > 0,
    )


def replaced(text: str) -> dict[str, float]:
    """The machine's numbers in "read_rate=40e9,node_size=4"."""
    try:
        return {n: int(v) if n == "node_size" else float(v) for n, v in command_line.pairs(text).items()}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NUMBER,..., such as read_rate=40e9") from None


def count_samples(settings: Settings, data: str | None) -> tuple[int, int]:
    """(samples that the run trains on, starts of an epoch): of an archive, or of six-hourly frames without a gap."""
    if data:
        starts = len(find_starts(settings, open_training_data(settings, data), "train"))
    else:
        first, last = np.array(settings.data.train, "datetime64[D]")
        starts = 4 * int((last - first).astype(int) + 1)
    return build.training_steps(settings, starts)[0] * settings.training.batch_size, starts


def row(plan: Plan, samples: int, price: float) -> dict[str, Any]:
    """One plan's numbers with their units in the names; `price` is that of a device's hour."""
    time, hours = plan.time, samples * plan.seconds_per_sample / 3600
    device_hours = hours * plan.layout.devices
    return {
        **dataclasses.asdict(plan.layout),
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
        "run_hours": hours,
        "device_hours": device_hours,
        **({"cost": device_hours * price} if price else {}),
    }


def format_rows(rows: list[dict[str, Any]]) -> str:
    """Plans as a table, a column for each mesh."""
    sizes = ["data", "domain", "tensor"]
    table = pd.DataFrame({" x ".join(str(row[size]) for size in sizes): row for row in rows}).drop(index=sizes)
    return table.map("{:.4g}".format).to_string()


def header(shape: ModelShape, options: StepOptions, hardware: Hardware) -> str:
    """What is planned, and for which machine."""
    lat, lon = shape.grid
    said = (f"{name}={value}" for name, value in dataclasses.asdict(options).items() if name != "batch")
    rates = f"{hardware.peak(options.compute_dtype) / 1e12:.0f} TFLOP/s {options.compute_dtype}"
    return "\n".join(
        [
            f"model: {parameters(shape) / 1e9:.2f} B parameters, {lat} x {lon} points, {shape.channels} channels, "
            f"patch {shape.patch[0]} x {shape.patch[1]}: {shape.tokens} tokens of {shape.embed}; forward "
            f"{forward_flops(shape, repeats=options.repeats) / 1e12:.2f} TFLOP per sample, training three times that",
            f"step: {', '.join(said)}",
            f"{hardware.name}: {rates} (products reach {100 * hardware.achieved_products:.0f} %), "
            f"{hardware.memory_bytes / 1e9:.0f} GB ({100 * USABLE_MEMORY:.0f} % usable) at "
            f"{hardware.memory_rate / 1e12:.2f} TB/s; per device {hardware.node_rate / 1e9:.0f} GB/s within nodes of "
            f"{hardware.node_size}, {hardware.network_rate / 1e9:.0f} GB/s between; storage "
            f"{hardware.read_rate / 1e9:.0f} GB/s per node",
        ]
    )


def make_parser() -> command_line.Parser:
    parser = command_line.make_parser("experiments.plan", __doc__)
    command_line.add_config(parser, required=False)
    command_line.add_data(parser, "default: a grid and the config's channels, or ERA5's")
    command_line.add_grid(parser, default=(720, 1440))
    add, least = parser.add_argument, command_line.integer
    add("--devices", type=least(1), default=1, metavar="N", help="how many devices; default: 1")
    add("--device", default="h200", choices=sorted(HARDWARE), help="which machine; default: h200")
    add("--hardware", type=replaced, default={}, metavar="NAME=NUMBER,...", help="numbers of the machine to replace")
    add("--price", type=float, default=0.0, metavar="P", help="of a device's hour, to show the run's cost")
    add("--batch-size", type=least(1), metavar="N", help="of every mesh; default: a sample for each instance")
    add("--compile", action="store_true", help="compile the best mesh's step on simulated devices and compare memory")
    add("--measured", action="store_true", help="show the predictions for the steps that were timed, and nothing else")
    about = "show which transfers of a compiled program run under products, and nothing else"
    add("--transfers", type=pathlib.Path, metavar="FILE", help=about)
    add("--json", type=command_line.output_file, metavar="FILE", help="plans and refusals are written to this file")
    return parser


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.measured:
        print(plan_checks.format_measured())
        return
    if options.transfers:
        print(plan_checks.format_transfers(options.transfers.read_text(encoding="utf-8")))
        return
    if options.config is None:
        parser.error("--config says which model to plan; --measured shows the steps that were timed")
    settings = command_line.read_settings(options)
    hardware = find_hardware(options.device, **options.hardware)
    if not options.data:  # on a grid finer than 0.25 degrees the patch grows to cover as much
        patch = tuple(max(1, options.grid[0] // 720) * size for size in settings.model.patch)
        settings = settings.replace({"model.patch": patch})
    shape, _ = synthetic.find_sizes(settings, data=options.data, grid=options.grid)
    step = step_options(settings, hardware, batch=options.batch_size or 1)
    samples = 0 if options.batch_size else 1
    plans, refusals = plan_meshes(shape, options.devices, step, hardware, samples_per_instance=samples)
    run_samples, starts = count_samples(settings, options.data)
    rows = [row(plan, run_samples, options.price) for plan in plans]
    print(header(shape, step, hardware))
    print(
        f"run: {run_samples:,} samples, {run_samples / starts:.3g} epochs of {starts:,}; hours are of its steps alone"
    )
    if plans:
        print(f"\n{len(plans)} meshes of {options.devices} devices, fastest per sample first:\n")
        print(format_rows(rows[:SHOWN]))
        print(
            "\nexposed: what the step waits for; hidden: what runs under its products; read: by each process, one on a "
            "node.\nHow near such times are to measured ones: --measured."
        )
    if refusals:
        more = [f" (and {len(each.reasons) - 2} more)" * (len(each.reasons) > 2) for each in refusals]
        lines = [f"  {each.layout}  {'; '.join(each.reasons[:2])}{rest}" for each, rest in zip(refusals, more)]
        print("\n".join([f"\n{len(refusals)} refused:", *lines]))
    if options.json:
        refused = [{**dataclasses.asdict(r.layout), "reasons": r.reasons} for r in refusals]
        text = json.dumps({"plans": rows, "refused": refused}, indent=1)
        options.json.write_text(text, encoding="utf-8")
    if not plans:
        raise ValueError(
            f"no mesh of {options.devices} x {hardware.name} holds this model: use more devices, "
            "--config.model.rematerialize=block or --config.mesh.zero=parameters"
        )
    if options.compile:
        print("\n" + plan_checks.compare(settings, plans[0], step, grid=options.grid, data=options.data))


if __name__ == "__main__":
    ends.run(main)
