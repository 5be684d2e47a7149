"""Times the whole training step on synthetic data, on the devices that are here.

  python -m experiments.benchmark train --mesh=1,2,1 --steps=40
  python -m experiments.benchmark train --data=era5.archive

The defaults are the 16-TFLOP model of Jigsaw's scaling study at 0.25 degrees, a sample for each instance: forward,
backward, clipping by the global norm and Adam, with float32 parameters and moments. Other settings are fields of a
config, such as --config.model.schedule=scatter or --config.training.batch_size=2. State and batch stay on the devices,
so that nothing but the step is timed. A GPU under its power limit slows down within a second: the median is of the warm
state. On several NVIDIA GPUs chunks are sent by copy engines, as in training.

With --data the same compiled step is timed a second time, each step on a batch of its own that is read as in training:
fed_ms, and fed_ms over step_ms, which is what reading costs.
"""

import argparse
import contextlib
import pathlib
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd
from jax.sharding import Mesh

from experiments import command_line, synthetic
from weathermixer import ModelShape, Settings, Standardization, find_hardware, make_mesh, open_archive
from weathermixer.archive.loader import Batches
from weathermixer.parallel.mesh import use_copy_engines, use_mesh
from weathermixer.planning.hardware import HARDWARE
from weathermixer.planning.hlo import hidden_transfers
from weathermixer.planning.work import train_flops
from weathermixer.runs.samples import find_samples
from weathermixer.training.phases import Phases
from weathermixer.training.telemetry import RunLog

EMBED = 4896  # features of a token, and hidden ones of channel mixing
BETWEEN_WAITS = 5  # steps sent before the device is waited for: the host's time is hidden, as in training
WARM_UP = 2  # groups of steps that are not counted


def make_parser() -> command_line.Parser:
    parser = command_line.make_parser("experiments.benchmark train", __doc__)
    add, count = parser.add_argument, dict(type=command_line.integer(1), metavar="N")
    command_line.add_config(parser, required=False)
    parser.set_defaults(config="base")
    command_line.add_grid(parser, default=(720, 1440))
    add("--mesh", type=command_line.mesh, default=(1, 1, 1), metavar=command_line.MESH, help="default: 1,1,1")
    command_line.add_data(parser, "its grid, channels and batches, for a second timing; default: ERA5's channels")
    add("--steps", **count, default=40, help="default: 40")
    add("--device", default="h200", choices=sorted(HARDWARE), help="whose peak the share is of; default: h200")
    add("--hlo", type=command_line.output_file, metavar="FILE", help="the compiled program is written to this file")
    return parser


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Compiles and times one setting; prints and returns its row."""
    args = make_parser().parse_args(argv)
    use_copy_engines()
    mesh = make_mesh(*args.mesh)
    settings = make_run_settings(args, mesh)
    with use_mesh(mesh), contextlib.ExitStack() as stack:
        if args.data:  # as a run reads it that is at its first step
            samples = find_samples(settings, pathlib.Path(args.data), open_archive(args.data), mesh)
            training, last = samples.make_training(rollout=1), 1 + WARM_UP + args.steps
            batches = stack.enter_context(samples.open_batches(samples.starts, 0, last, rollout=1))
            fields = next(batches), samples.frames.standardization
        else:
            problem = synthetic.make_problem(settings, mesh, grid=args.grid)
            training, fields = problem.training, (problem.make_batch(0), problem.standardization)
        state = jax.jit(training.initial_state)()
        compiled = training.train_step.lower(state, *fields).compile()
        text = compiled.as_text()
        if args.hlo:
            args.hlo.write_text(text)
        seconds, state = time_steps(compiled, state, *fields, steps=args.steps)
        row = make_row(settings, training.shape, mesh, compiled.memory_analysis(), seconds, device=args.device)
        if args.data:
            row |= time_fed_steps(compiled, state, fields[1], batches, bare=seconds)
    transfers = hidden_transfers(text)
    row["hidden_transfers"] = f"{sum(products > 0 for _, products in transfers)}/{len(transfers)}"
    print(pd.DataFrame([row]).to_string(index=False))
    return row


def make_run_settings(args: argparse.Namespace, mesh: Mesh) -> Settings:
    """The settings of --config with the study's sizes, on the mesh; fields that are given on the command line win."""
    own = {
        "model.embed": EMBED,
        "model.embed_hidden": EMBED,
        "model.compute_dtype": "bfloat16",
        "training.batch_size": mesh.devices.shape[0],
        "data.channel_multiple": mesh.devices.shape[2],
    }
    if args.data:
        times = open_archive(args.data).times
        own |= dict.fromkeys(("data.train", "data.validation"), (str(times[0])[:10], str(times[-1])[:10]))
    given = {name.removeprefix("config."): value for name, value in vars(args).items() if name.startswith("config.")}
    return command_line.read_settings(args).replace(own | given)


def time_steps(compiled: Any, state: Any, *constant: Any, steps: int) -> tuple[float, Any]:
    """Median seconds of a step over groups of steps, and the state; FloatingPointError where the loss is not finite."""
    seconds = []
    for group in range(WARM_UP + -(-steps // BETWEEN_WAITS)):
        start = time.perf_counter()
        for _ in range(BETWEEN_WAITS):
            state, metrics = compiled(state, *constant)
        jax.block_until_ready((state, metrics))
        if group >= WARM_UP:
            seconds.append((time.perf_counter() - start) / BETWEEN_WAITS)
    if not jnp.isfinite(metrics["loss"]):
        raise FloatingPointError(f"loss={metrics['loss']} after {steps} steps: such a timing means nothing")
    return statistics.median(seconds), state


def time_fed_steps(
    compiled: Any, state: Any, standardization: Standardization, batches: Batches, *, bare: float
) -> dict[str, Any]:
    """What is reported of steps that are fed as in training: their median, over the bare step, and what they idle."""
    log = RunLog(None, Phases())
    lines = []
    for step, batch in enumerate(log.watch(batches), 1):
        state, metrics = compiled(state, batch, standardization)
        lines.append(log.step(step, metrics))
    lines = [line for line in [*lines, log.flush()] if line and "step_seconds" in line][WARM_UP:]
    fed, idle = (statistics.median(line[name] for line in lines) for name in ("step_seconds", "idle_seconds"))
    return {"fed_ms": round(fed * 1e3, 2), "fed_over_bare": round(fed / bare, 3), "idle_ms": round(idle * 1e3, 2)}


def make_row(
    settings: Settings, shape: ModelShape, mesh: Mesh, memory: Any, seconds: float, *, device: str
) -> dict[str, Any]:
    """What is reported; work is the matrix products' by convention, three forward passes."""
    work = train_flops(shape, batch=settings.training.batch_size) / mesh.size
    return {
        "mesh": "x".join(map(str, mesh.devices.shape)),
        "schedule": settings.model.schedule,
        "zero": settings.mesh.zero,
        "compute_dtype": settings.model.compute_dtype,
        "embed": shape.embed,
        "token_hidden": shape.token_hidden,
        "head": shape.head,
        "step_ms": round(seconds * 1e3, 2),
        "tflops_per_device": round(work / seconds / 1e12, 1),
        "share_of_peak": round(work / seconds / find_hardware(device).peak(settings.model.compute_dtype), 3),
        "state_gib": round(memory.argument_size_in_bytes / 2**30, 2),
        "temporary_gib": round(memory.temp_size_in_bytes / 2**30, 2),
    }
