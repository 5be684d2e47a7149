"""Plans a training run before anything is started: which meshes hold the model, how fast they are, what limits them.

  python -m experiments.plan --config=experiments/configs/reference.py --devices=256 --device=h200 [--grid=0.125]

Every (data, domain, tensor) of the device count is judged by closed formulae (weathermixer/cost), in seconds on a CPU:
memory per device, bytes exchanged within and between nodes, bytes read per node, the predicted step and its share of
peak. Meshes that do not divide the model or do not fit in memory are listed with the numbers. Other sizes of the
published model: --config=experiments/configs/reference.py:3.2b or :10b, or any field: --config.model.embed=8192.

--compile lowers the real training step for the best mesh on simulated devices and sets the compiler's account of memory
beside the formulae's. Machines are in weathermixer/planning/hardware.py; their numbers can be replaced:
--hardware=read_rate=40e9,node_size=4. --measured shows what is predicted for the steps that were timed.
"""

import csv
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterable
from typing import Any

from absl import app, flags

from experiments import compiled, shared_flags, synthetic
from weathermixer.model.weathermixer import ModelShape
from weathermixer.planning.hardware import HARDWARE, Hardware, find_hardware
from weathermixer.planning.measured import MEASURED, MODELS, Measured
from weathermixer.planning.meshes import StepOptions
from weathermixer.planning.plan import USABLE_MEMORY, Plan, Refusal, plan_meshes
from weathermixer.planning.time import step_time
from weathermixer.planning.work import forward_flops, parameters
from weathermixer.runs.settings import Settings

flags.adopt_module_key_flags(shared_flags)
_DEVICES = flags.DEFINE_integer("devices", 1, "how many devices", lower_bound=1)
_DEVICE = flags.DEFINE_enum("device", "h200", sorted(HARDWARE), "which machine")
_HARDWARE = flags.DEFINE_list("hardware", [], "numbers of the machine to replace, such as read_rate=40e9,node_size=4")
_SAMPLES = flags.DEFINE_integer("samples_per_instance", 1, "batch = this times the mesh's data axis", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 0, "a batch that is the same on every mesh, instead", lower_bound=0)
_ZERO = flags.DEFINE_enum(
    "zero", None, ["none", "moments", "parameters"], "what is cut over data too; default: the config's"
)
_TOP = flags.DEFINE_integer("top", 12, "how many meshes the table shows; 0: all", lower_bound=0)
_COMPILE = flags.DEFINE_bool("compile", False, "compile the best mesh's step on simulated devices and compare memory")
_MEASURED = flags.DEFINE_bool("measured", False, "show the predictions for the steps that were timed, and nothing else")
_CSV = flags.DEFINE_string("csv", None, "file to write every plan to")
_JSON = flags.DEFINE_string("json", None, "file to write plans and refusals to")


def step_options(settings: Settings, hardware: Hardware, *, batch: int, zero: str) -> StepOptions:
    """What of a config a step's costs depend on."""
    named = settings.model.compute_dtype
    return StepOptions(
        batch=batch,
        repeats=settings.training.lead_steps,
        compute_dtype=("float32" if hardware.name == "cpu" else "bfloat16") if named == "auto" else named,
        rematerialize=settings.model.rematerialize,
        schedule=settings.model.schedule,
        ema=settings.training.ema_decay > 0,
        zero=zero,
        frames=1 + settings.model.history,
        dropout=settings.model.dropout_rate > 0,
    )


def overrides(replaced: list[str]) -> dict[str, float]:
    """The machine's numbers that --hardware replaces; ValueError where one is not NAME=NUMBER."""
    found = {}
    for setting in replaced:
        name, _, value = setting.partition("=")
        try:
            found[name] = int(value) if name == "node_size" else float(value)
        except ValueError as error:
            raise ValueError(f"--hardware={setting!r} is not NAME=NUMBER, such as read_rate=40e9") from error
    return found


def row(plan: Plan) -> dict[str, Any]:
    """One plan's numbers with their units in the names, for CSV and JSON."""
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
    shown = plans[: top or None]
    parts = list(shown[0].memory)
    short = {"parameters": "param", "moments": "mom", "gradients": "grad", "activations": "act", "temporaries": "temp"}
    head = ["data x domain x tensor", "batch", *(short.get(part, part) for part in parts), "total", "node", "net"]
    head += ["MB/proc", "GB/s", "prod", "elem", "optim", "exch", "hid", "read", "hid", "step ms", "sample/s", "peak"]
    rows = [head]
    for plan in shown:
        t = plan.time
        milliseconds = [t.products, t.elementwise, t.optimizer, t.exchange_exposed, t.exchange_hidden]
        milliseconds += [t.read_exposed, t.read_hidden, t.total]
        rows.append(
            [str(plan.layout), str(plan.batch)]
            + [f"{size / 1e9:.2f}" for size in (*plan.memory.values(), sum(plan.memory.values()))]
            + [f"{plan.within_node / 1e6:.0f}", f"{plan.between_nodes / 1e6:.0f}", f"{plan.read / 1e6:.0f}"]
            + [f"{plan.read_rate_to_hide / 1e9:.1f}"]
            + [f"{1e3 * seconds:.1f}" for seconds in milliseconds]
            + [f"{plan.batch / t.total:.1f}", f"{100 * t.share_of_peak:.0f} %"]
        )
    groups = [
        ("", 2),
        ("GB per device", len(parts) + 1),
        ("MB received", 2),
        ("reading", 2),
        ("ms of a step", 8),
        ("", 2),
    ]
    return format_columns(rows, groups)


def format_columns(rows: list[list[str]], groups: list[tuple[str, int]]) -> str:
    """Right-aligned columns under group headings, groups apart by a bar."""
    widths = [max(len(line[i]) for line in rows) for i in range(len(rows[0]))]
    bounds, start = [], 0
    for name, size in groups:
        inner = sum(widths[start : start + size]) + size - 1
        widths[start] += max(0, len(name) - inner)
        bounds.append((name, start, start + size))
        start += size
    lines = [" | ".join(name.center(sum(widths[a:b]) + b - a - 1) for name, a, b in bounds)]
    lines += [
        " | ".join(" ".join(line[i].rjust(widths[i]) for i in range(a, b)) for _, a, b in bounds) for line in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


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


def main(_) -> None:
    if _MEASURED.value:
        print(format_measured(MEASURED))
        return
    if shared_flags.CONFIG.value is None:
        raise app.UsageError("--config says which model to plan, or --measured shows the steps that were timed")
    try:
        settings = shared_flags.read_settings()
        hardware = find_hardware(_DEVICE.value, **overrides(_HARDWARE.value))
        grid = shared_flags.find_grid((720, 1440))
        if not shared_flags.DATA.value:  # on a grid finer than 0.25 degrees the patch grows to cover as much
            patch = tuple(max(1, grid[0] // 720) * size for size in settings.model.patch)
            settings = settings.replace({"model.patch": patch})
        shape, channel_set = synthetic.find_sizes(settings, data=shared_flags.DATA.value, grid=grid)
        zero = _ZERO.value or settings.mesh.zero
        options = step_options(settings, hardware, batch=_BATCH.value or 1, zero=zero)
        samples = 0 if _BATCH.value else _SAMPLES.value
        plans, refusals = plan_meshes(shape, _DEVICES.value, options, hardware, samples_per_instance=samples)
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    print(header(settings, shape, options, hardware))
    if plans:
        print(f"\n{len(plans)} meshes of {_DEVICES.value} devices, fastest per sample first:\n")
        print(format_plans(plans, _TOP.value))
        print(
            "\nreading: MB per process (one per node) and step, and the rate that hides it; exch, read: what the step "
            "waits\nfor, beside it what hides; peak: three forward passes over step time and peak. How near such times "
            "are to\nmeasured ones: --measured."
        )
        planned = [(hardware.name, p.layout, shape, dataclasses.replace(options, batch=p.batch)) for p in plans]
        timed = [c for c in MEASURED if (c.device, c.layout, ModelShape(**MODELS[c.model]), c.options) in planned]
        if timed:
            print(f"\n{format_measured(timed)}")
    if refusals:
        print(f"\n{len(refusals)} refused:\n{format_refusals(refusals)}")
    if _CSV.value and plans:
        with open(_CSV.value, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row(plans[0])))
            writer.writeheader()
            writer.writerows(map(row, plans))
    if _JSON.value:
        refused = [{**dataclasses.asdict(r.layout), "reasons": r.reasons} for r in refusals]
        text = json.dumps({"plans": list(map(row, plans)), "refused": refused}, indent=1)
        pathlib.Path(_JSON.value).write_text(text, encoding="utf-8")
    if not plans:
        sys.exit(
            f"no mesh of {_DEVICES.value} x {hardware.name} holds this model: use more devices, "
            "--config.model.rematerialize=block or --zero=parameters"
        )
    if _COMPILE.value:
        print("\n" + compiled.compare(settings, shape, channel_set, plans[0], options))


if __name__ == "__main__":
    app.run(main)
