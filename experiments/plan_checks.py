"""What plans are held against: steps that were timed, the compiler's account of memory, a program's transfers."""

from collections import Counter

import pandas as pd

from experiments import synthetic
from weathermixer import Settings, StepOptions, find_hardware, make_mesh
from weathermixer.parallel.mesh import use_mesh
from weathermixer.planning.account import format_bytes
from weathermixer.planning.hlo import hidden_transfers
from weathermixer.planning.plan import Plan
from weathermixer.planning.time import MEASURED, MODEL, MODEL_SHAPE, step_time


def format_measured() -> str:
    """A line for each step that was timed, with what is predicted for it."""
    rows = []
    for case in MEASURED:
        step = step_time(MODEL_SHAPE, case.layout, case.options, find_hardware(case.device))
        row = {"device": case.device, "mesh": case.layout, "compute_dtype": case.compute_dtype, "zero": case.zero}
        row |= {"predicted_ms": 1e3 * step.total, "measured_ms": case.step_ms, "ratio": 1e3 * step.total / case.step_ms}
        rows.append(row | {"software": case.software})
    formats = {"predicted_ms": "{:.1f}".format, "ratio": "{:.2f}".format}
    table = pd.DataFrame(rows).to_string(index=False, formatters=formats)
    options = "--mesh=MESH --config.model.compute_dtype=... --config.mesh.zero=..."
    return f"{MODEL} model, measured by `python -m experiments.benchmark train {options}`\n{table}"


def compare(
    settings: Settings, plan: Plan, options: StepOptions, *, grid: tuple[int, int], data: str | None = None
) -> str:
    """A plan's memory by formula beside the compiler's, for the step compiled on as many simulated devices."""
    layout, parts = plan.layout, plan.memory
    synthetic.simulate_devices(layout.devices)
    settings = settings.replace({"training.batch_size": plan.batch, "model.compute_dtype": options.compute_dtype})
    mesh = make_mesh(layout.data, layout.domain, layout.tensor)
    with use_mesh(mesh):
        problem = synthetic.make_problem(settings, mesh, data=data, grid=grid)
        memory = problem.compile().memory_analysis()
    shape = problem.training.shape
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
    """How many transfers of a program have how many products between start and done."""
    hidden = sorted(Counter(hidden_transfers(text)).items())
    lines = [f"{times:>4} x {kind}-start ... {products} products ... {kind}-done" for (kind, products), times in hidden]
    return "\n".join(lines) or "no transfer of this program has a start and a done: GPUs' compilers split them in two"
