"""Times the whole training step on synthetic data, on the devices that are here.

  python -m experiments.benchmark train --mesh=1,2,1 --steps=40 --csv=steps.csv
  python -m experiments.benchmark train --data=era5.archive

The defaults are the 16-TFLOP model of Jigsaw's scaling study at 0.25 degrees, one sample: forward, backward, clipping
by the global norm and Adam, with float32 parameters and moments. State and batch stay on the devices, so that nothing
but the step is timed. A GPU under its power limit slows down within a second: the median is of the warm state. On
several NVIDIA GPUs of one host, XLA_FLAGS=--xla_gpu_collective_permute_mode=peer sends chunks by copy engines.

With --data the same compiled step is timed a second time, each step on a batch of its own that is read as in training:
fed_ms, and fed_ms over step_ms, which is what reading costs.
"""

import argparse
import contextlib
import csv
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from experiments import command_line
from weathermixer.archive.archive import Archive, open_archive
from weathermixer.archive.loader import Batch, Batches, make_batches
from weathermixer.archive.reference import make_reference
from weathermixer.archive.sampling import valid_starts
from weathermixer.archive.standardization import Standardization, make_standardization
from weathermixer.fields.grid import cosine_weights
from weathermixer.fields.variables import ChannelSet
from weathermixer.model.weathermixer import HEADS, REMATERIALIZE, ModelShape, WeatherMixer
from weathermixer.parallel import fp8
from weathermixer.parallel.mesh import instances, make_mesh, sharding, use_mesh, ways
from weathermixer.parallel.schedule import SCHEDULES
from weathermixer.parallel.zero import ZERO
from weathermixer.planning.hardware import HARDWARE, find_hardware
from weathermixer.planning.hlo import hidden_transfers
from weathermixer.planning.work import train_flops
from weathermixer.training.optimizer import make_optimizer
from weathermixer.training.state import TrainState, make_state
from weathermixer.training.steps import make_loss, make_train_step
from weathermixer.training.telemetry import RunLog

BETWEEN_WAITS = 5  # steps sent before the device is waited for: the host's time is hidden, as in training
WARM_UP = 2  # groups of steps that are not counted


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Compiles and times one setting, prints its row and adds it to the CSV file; returns the row."""
    args = make_parser().parse_args(argv)
    mesh = make_mesh(*args.mesh)
    archive, channel_set = open_data(args, mesh) if args.data else (None, None)
    shape = make_shape(args)
    with use_mesh(mesh), contextlib.ExitStack() as stack:
        train_step, state = make_problem(shape, args)
        if archive:
            batches = stack.enter_context(read_batches(archive, channel_set, mesh, args))
            packing = dict(scale=archive.scale, offset=archive.offset)
            fields = next(batches), make_standardization(make_reference(archive, channel_set), mesh, **packing)
        else:
            fields = make_fields(shape, args, mesh)
        compiled = train_step.lower(state, *fields).compile()
        text = compiled.as_text()
        if args.hlo:
            args.hlo.write_text(text)
        seconds, state = time_steps(compiled, state, *fields, steps=args.steps)
        row = make_row(args, shape, mesh, compiled.memory_analysis(), seconds)
        if archive:
            row |= time_fed_steps(compiled, state, fields[1], batches, bare=seconds)
        elif args.profile:
            with jax.profiler.trace(args.profile):
                for _ in range(3):
                    state, metrics = compiled(state, *fields)
                jax.block_until_ready(metrics)
    transfers = hidden_transfers(text)
    row["hidden_transfers"] = f"{sum(products > 0 for _, products in transfers)}/{len(transfers)}"
    report(row, args.csv)
    return row


def make_parser() -> command_line.Parser:
    """The command line's options."""
    parser = command_line.make_parser("experiments.benchmark train", __doc__)
    add, count = parser.add_argument, dict(type=command_line.integer(1), metavar="N")
    about = "degrees between points, as 0.25, or latitudes,longitudes"
    add("--grid", type=command_line.grid, default=(720, 1440), help=about)
    add("--patch", type=command_line.pair, default=(1, 60), metavar="ROWS,COLUMNS", help="of a token; default: 1,60")
    add("--channels", **count, default=72, help="the last three are static fields; default: 72")
    add("--embed", **count, default=4896, help="features of a token; default: 4896")
    add("--embed-hidden", **count, help="default: as embed")
    about = "hidden size of token mixing over the number of tokens; default: 0.5"
    add("--token-hidden-ratio", type=command_line.positive, default=0.5, metavar="RATIO", help=about)
    add("--blocks", **count, default=3, help="default: 3")
    add("--head", default="blend", choices=HEADS, help="default: blend")
    add("--batch-size", **count, help="samples per step, all instances together; default: one per instance")
    add("--mesh", type=command_line.mesh, default=(1, 1, 1), metavar=command_line.MESH, help="default: 1,1,1")
    about = "of activations and products; default: bfloat16"
    add("--compute-dtype", default="bfloat16", choices=("bfloat16", "float32", "fp8"), help=about)
    add("--schedule", default="auto", choices=SCHEDULES, help="of the distributed contractions; default: auto")
    add("--rematerialize", default="none", choices=REMATERIALIZE, help="default: none")
    add("--zero", default="none", choices=ZERO, help="what is cut over the instances too")
    about = "an archive: its grid and channels, and its batches for a second timing"
    add("--data", metavar="ARCHIVE", help=about)
    add("--steps", **count, default=40, help="default: 40")
    add("--device", default="h200", choices=sorted(HARDWARE), help="whose peak the share is of; default: h200")
    add("--csv", type=command_line.output_file, metavar="FILE", help="the row is added to this file")
    add("--hlo", type=command_line.output_file, metavar="FILE", help="the compiled program is written to this file")
    add("--profile", metavar="DIR", help="a profile of three steps is written to this directory")
    parser.set_defaults(predicted=None)  # channels but the static ones
    return parser


def make_shape(args: argparse.Namespace) -> ModelShape:
    """The model's sizes."""
    tokens = (args.grid[0] // args.patch[0]) * (args.grid[1] // args.patch[1])
    return ModelShape(
        grid=args.grid,
        channels=args.channels,
        predicted=args.predicted or args.channels - 3,
        patch=args.patch,
        embed=args.embed,
        token_hidden=round(tokens * args.token_hidden_ratio),
        embed_hidden=args.embed_hidden or args.embed,
        blocks=args.blocks,
        head=args.head,
    )


def open_data(args: argparse.Namespace, mesh: Mesh) -> tuple[Archive, ChannelSet]:
    """The archive of --data with all of its channels; its sizes take the place of --grid and --channels."""
    archive = open_archive(args.data)
    channel_set = ChannelSet(archive.channels, tuple(archive.static), ways(mesh, "channel"))
    args.grid, args.channels, args.predicted = archive.grid.shape, channel_set.size, len(archive.channels)
    return archive, channel_set


def read_batches(archive: Archive, channel_set: ChannelSet, mesh: Mesh, args: argparse.Namespace) -> Batches:
    """The batches of a run on the whole archive, from one step to the next: one to time bare steps, then --steps."""
    step_hours = archive.step_hours
    starts = valid_starts(archive.times, (archive.times[0], archive.times[-1]), step_hours, step_hours=step_hours)
    options = dict(seed=0, batch_size=args.batch_size or instances(mesh), lead_hours=step_hours)
    steps = dict(first_step=0, last_step=1 + WARM_UP + args.steps)
    return make_batches(archive, channel_set, mesh, starts=starts, **options, **steps)


def make_fields(shape: ModelShape, args: argparse.Namespace, mesh: Mesh) -> tuple[Batch, Standardization]:
    """Random fields that are stored standardized."""

    def random(key, *names, size, dtype):
        return jax.random.normal(key, size, dtype, out_sharding=sharding(mesh, *names).spec)

    keys, batch_size = jax.random.split(jax.random.key(1), 3), args.batch_size or instances(mesh)
    size = (batch_size, shape.channels, *shape.grid)
    batch = Batch(*(random(key, "batch", "channel", "lat", "lon", size=size, dtype=jnp.float16) for key in keys[:2]))
    static = random(keys[2], "channel", "lat", "lon", size=size[1:], dtype=jnp.float32)
    one, zero = (jnp.full(shape.channels, value, out_sharding=sharding(mesh, "channel").spec) for value in (1.0, 0.0))
    return batch, Standardization(scale=one, offset=zero, mean=zero, std=one, tendency=one, static=static)


def make_problem(shape: ModelShape, args: argparse.Namespace) -> tuple[Any, TrainState]:
    """The training step and a state with random parameters."""
    model = WeatherMixer(
        shape,
        rngs=nnx.Rngs(0),
        tendency=[0.1] * shape.channels,
        compute_dtype=jnp.dtype("bfloat16" if args.compute_dtype == "fp8" else args.compute_dtype),
        fp8=args.compute_dtype == "fp8",
        rematerialize=args.rematerialize,
        schedule=args.schedule,
    )
    graph, params = nnx.split(model)
    rate = lambda step: 1e-4  # noqa: E731
    optimizer = make_optimizer("adam", processor_rate=rate, coder_rate=rate, weight_decay=3e-6)
    state = jax.jit(lambda params: make_state(params, optimizer, ema=False, zero=args.zero))(nnx.to_pure_dict(params))

    def apply(params, x, *, repeats, key):
        return nnx.merge(graph, params)(x, repeats=repeats, key=key)

    latitude = 90 - (np.arange(shape.grid[0]) + 0.5) * 180 / shape.grid[0]
    channel = (np.arange(shape.channels) < shape.predicted).astype(np.float32)
    loss = make_loss(apply, area=cosine_weights(latitude), channel=channel, repeats=1)
    train_step = make_train_step(
        loss,
        optimizer,
        learning_rate=rate,
        ema_decay=None,
        seed=None,
        zero=args.zero,
        compiler_options=fp8.COMPILER_OPTIONS if args.compute_dtype == "fp8" else None,
    )
    return train_step, state


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
    log = RunLog(first_step=0, every=1, batch_size=1, flops=0.0, peak_flops=None)
    lines = []
    for step, batch in enumerate(log.watch(batches), 1):
        state, metrics = compiled(state, batch, standardization)
        lines.append(log.step(step, metrics))
    lines = [line for line in [*lines, log.flush()] if line and "step_seconds" in line][WARM_UP:]
    fed, idle = (statistics.median(line[name] for line in lines) for name in ("step_seconds", "idle_seconds"))
    return {"fed_ms": round(fed * 1e3, 2), "fed_over_bare": round(fed / bare, 3), "idle_ms": round(idle * 1e3, 2)}


def make_row(args: argparse.Namespace, shape: ModelShape, mesh: Mesh, memory: Any, seconds: float) -> dict[str, Any]:
    """What is reported; work is the matrix products' by convention, three forward passes."""
    work = train_flops(shape, batch=args.batch_size or instances(mesh)) / mesh.size
    peak = find_hardware(args.device).peak(args.compute_dtype)
    return {
        "mesh": "x".join(map(str, args.mesh)),
        "schedule": args.schedule,
        "zero": args.zero,
        "compute_dtype": args.compute_dtype,
        "embed": shape.embed,
        "token_hidden": shape.token_hidden,
        "head": shape.head,
        "step_ms": round(seconds * 1e3, 2),
        "tflops_per_device": round(work / seconds / 1e12, 1),
        "share_of_peak": round(work / seconds / peak, 3),
        "state_gib": round(memory.argument_size_in_bytes / 2**30, 2),
        "temporary_gib": round(memory.temp_size_in_bytes / 2**30, 2),
    }


def report(row: dict[str, Any], path: Path | None) -> None:
    """Prints the row under its header, and adds it to the CSV file where one is named."""
    width = {key: max(len(key), len(str(value))) for key, value in row.items()}
    print("  ".join(key.rjust(width[key]) for key in row))
    print("  ".join(str(value).rjust(width[key]) for key, value in row.items()))
    if path:
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)
