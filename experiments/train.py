"""Trains a WeatherMixer, from a config to a checkpoint; the same command goes on where a run was stopped.

  python -m experiments.train --config=NAME --workdir=DIR [--data=ARCHIVE] [--config.FIELD=VALUE]

Start with the quickstart, which simulates its own small atmosphere and ends with scores, a forecast and a map:

  python -m experiments.train --config=quickstart --workdir=runs/quickstart

Configs: quickstart (simulated, minutes on a laptop), gfs_wind (real analyses, small), reference (the published 1.06 B
model at 0.25 degrees), or a file of your own: --config=own.py. Every field of a config is documented in
weathermixer/runs/settings.py and can be set on the command line: --config.training.steps=200 --config.mesh.domain=4.

DIR receives config.json, log.txt, metrics.jsonl, tensorboard/, checkpoints/ and, where the config asks for them,
scores.json, forecast.zarr and forecast.png. To try meshes without GPUs, simulate devices:
XLA_FLAGS=--xla_force_host_platform_device_count=8. On several machines start one process on each: see launch/.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments import command_line, evaluate, forecast
from weathermixer.archive.archive import Archive
from weathermixer.archive.boxes import read_amplification
from weathermixer.archive.frames import Frames, archive_frames
from weathermixer.archive.loader import Batch, Batches, make_batches
from weathermixer.archive.reference import Reference, describe_roles
from weathermixer.archive.sampling import sample_leads, sample_starts, valid_starts, with_previous
from weathermixer.archive.standardization import Standardization
from weathermixer.parallel import distributed
from weathermixer.parallel.mesh import check_divides, make_mesh, use_mesh
from weathermixer.planning.account import account_step, format_account
from weathermixer.planning.hardware import find_device
from weathermixer.planning.work import parameters, train_flops
from weathermixer.runs import build, fork
from weathermixer.runs import workdir as workdirs
from weathermixer.runs.owner import own_workdir
from weathermixer.runs.record import describe_archive, write_record
from weathermixer.runs.run import Run
from weathermixer.runs.settings import Settings
from weathermixer.training.checkpoint import Checkpoints, open_checkpoints, saved_steps, software_versions
from weathermixer.training.state import TrainState, describe
from weathermixer.training.telemetry import RunLog, open_log


def train(
    settings: Settings,
    workdir: pathlib.Path,
    data: str | None = None,
    *,
    accept_data: bool = False,
    step: int | None = None,
    take_over: bool = False,
) -> Run:
    """Runs the training that a config describes, from its last checkpoint if there is one, and returns the trained run.

    `step` goes on from that checkpoint instead. Raises ValueError, before long work starts, for what cannot work, as
    where another run is alive in the workdir (`take_over` ends that one), or where processes were told different
    things; FloatingPointError where the loss is not finite.
    """
    if data and "://" not in data:
        data = os.path.abspath(os.path.expanduser(data))
    distributed.check_same(workdirs.flatten(settings.values()) | software_versions(), "the run")
    with own_workdir(workdir, take_over=take_over):
        return _train(settings, workdir, data, accept_data, step)


def _train(settings: Settings, workdir: pathlib.Path, data: str | None, accept_data: bool, step: int | None) -> Run:
    mesh = make_mesh(settings.mesh.data, settings.mesh.domain, settings.mesh.tensor)
    parts = settings.training.accumulate
    what = "batch_size" if parts == 1 else "batch_size / accumulate"
    check_divides(mesh, **{what: ("batch", settings.training.batch_size // parts)})
    workdirs.check_workdir(settings, workdir)
    archive = build.open_data(settings, data)
    if settings.evaluation.final:
        evaluate.check(settings, archive)
    distributed.check_same(describe_archive(archive) | {"path": ""}, "the archive")  # which may differ by host
    record = workdirs.make_record(settings, workdir, archive, accept_data=accept_data)
    if settings.training.init_from and not saved_steps(workdir / workdirs.CHECKPOINTS):
        record = fork.fork_record(record, settings)
    reference, channel_set = record.reference, record.reference.channel_set
    lead_hours = settings.training.lead_steps * archive.step_hours
    longest = settings.training.longest_steps * archive.step_hours
    starts, held_out = (
        valid_starts(archive.times, getattr(settings.data, period), longest, step_hours=archive.step_hours)
        for period in ("train", "validation")
    )
    if settings.model.history == 2:
        starts, held_out = (with_previous(archive.times, s, step_hours=archive.step_hours) for s in (starts, held_out))

    def open_batches(starts, first_step: int, last_step: int, rollout: int) -> Batches:
        options = dict(seed=settings.seed, batch_size=settings.training.batch_size, lead_hours=lead_hours)
        options |= dict(rollout=rollout, leads=settings.training.leads)
        steps = dict(first_step=first_step, last_step=last_step)
        reading = dict(prefetch=settings.data.prefetch, block=settings.data.block, on_error=settings.data.on_error)
        reading["history"] = settings.model.history
        return make_batches(archive, channel_set, mesh, starts=starts, **options, **steps, **reading)

    with use_mesh(mesh):
        frames = archive_frames(archive, reference, mesh)
        sizes = dict(latitude=reference.grid.latitude, longitudes=reference.grid.shape[1], channel_set=channel_set)
        sizes |= dict(tendency=reference.tendency, starts=len(starts), mesh=mesh)
        record = dataclasses.replace(record, length=workdirs.find_length(record, settings, len(starts)))
        training = build.make_training(settings, **sizes, rollout=1, length=record.length)
        said: list[str] = []
        with _open_checkpoints(settings, workdir, said.append) as checkpoints:
            first_step = checkpoints.resume(step)
            if first_step > training.steps:
                raise ValueError(f"{workdir} has done {first_step} steps: training.steps={training.steps} are fewer")
            if first_step == training.steps and record.archive["checksum"] != archive.attributes.get("checksum"):
                raise ValueError(
                    f"{workdir} has done all of its {first_step} steps: on {archive.path} nothing is left to train; "
                    f"train another from it: --workdir=NEW --config.training.init_from={workdir}"
                )
            if first_step:
                state = checkpoints.restore(describe(jax.eval_shape(training.initial_state), mesh), step=first_step)
                checkpoints.put_aside(first_step)
            elif settings.training.init_from:
                state, born = fork.fork_state(training, settings, channel_set, mesh)
                record = dataclasses.replace(record, history=(*record.history, born))
                said.append(f"starts from the {born}")
            else:
                state = jax.jit(training.initial_state)()
            workdirs.write_settings(settings, workdir, archive=data)
            write_record(record, workdir, shape=training.shape)

            for first, last, rollout in build.rollout_stages(settings, first_step, training.steps):
                stage = build.make_training(settings, **sizes, rollout=rollout, length=record.length)
                with (
                    _open_log(settings, workdir, stage, first, rollout=rollout) as log,
                    open_batches(starts, first, last, rollout) as batches,
                ):
                    if first == first_step:
                        pairs, host_bytes = len(starts), batches.host_bytes
                        _introduce(log, archive, reference, mesh, pairs=pairs, host_bytes=host_bytes)
                        for line in said:
                            log.note(line)
                        log.note(f"{parameters(stage.shape):,} parameters, steps {first_step} to {stage.steps}")
                    if max(settings.training.rollout) > 1:
                        log.note(f"steps {first} to {last}: forecasts of {rollout} x {lead_hours} h")

                    def open_held_out(rollout=rollout):
                        return open_batches(held_out, 0, settings.evaluation.batches, rollout)

                    def look(step: int, *, validation: bool = False, rollout=rollout):
                        leads = [number * lead_hours // archive.step_hours for number in range(1, rollout + 1)]
                        _look_for_missing(settings, frames, held_out if validation else starts, step, leads)

                    steps = enumerate(log.watch(batches, account=batches.account), first + 1)
                    feed = (frames.standardization, steps, open_held_out, look)
                    state = _run_steps(settings, stage, state, *feed, log, checkpoints, data)
                    for problem in batches.account().skipped:
                        log.note(f"skipped a sample: {problem}")
    params = state.ema if settings.training.ema_decay else state.params
    return Run(workdir, settings, reference, data, mesh, training.apply, params, training.steps)


def _introduce(log: RunLog, archive: Archive, reference: Reference, mesh: Mesh, *, pairs: int, host_bytes: int) -> None:
    """The log's first lines: machine, data, and what reading takes."""
    channel_set = reference.channel_set
    log.note(f"{distributed.describe()}, mesh {dict(mesh.shape)}")
    log.note(f"{archive.path}: {pairs} training pairs of {len(channel_set.dynamic)} channels")
    for line in describe_roles(reference):
        log.note(line)
    excess = read_amplification(archive, channel_set, mesh, processes=[mesh.local_devices])
    made_for = f"domain={archive.attributes['domain']}, tensor={archive.attributes['tensor']}"
    log.note(f"an archive for {made_for}: this process reads {excess:.2f} times the bytes that it needs")
    log.note(f"reading takes at most {host_bytes / 1e9:.3g} GB of host memory")


def _run_steps(
    settings: Settings,
    training: build.Training,
    state: TrainState,
    standardization: Standardization,
    steps: Iterable[tuple[int, Batch]],
    open_held_out: Callable[[], Batches],
    look: Callable[..., None],
    log: RunLog,
    checkpoints: Checkpoints,
    data: str | None,
) -> TrainState:
    """Trains on every (step, batch), with validation and checkpoints between; SystemExit where it is asked to stop.

    `look` is asked for faults of the data where a loss is not finite, as look(step) and look(batch, validation=True).
    """
    train_step, guard = None, _Guard(checkpoints, look)
    for step, batch in steps:
        if train_step is None:  # compiled here, so that the account tells what the compiler plans for
            train_step = training.train_step.lower(state, batch, standardization).compile()
            log.note(_account(settings, training, state, batch, standardization, train_step))
        state, metrics = train_step(state, batch, standardization)
        if log.step(step, metrics):  # of the steps before: this one is still under way
            guard.check()
        if said := checkpoints.saved():
            log.note(said)
        guard.watch(step, metrics)
        last = step == training.steps
        if settings.evaluation.every and (last or step % settings.evaluation.every == 0):
            with open_held_out() as batches:
                loss = _mean_loss(training, settings, state, batches, standardization, look)
            log.record(step, {"validation_loss": loss})
            checkpoints.rate(step, loss)
        stop = distributed.preempted(step)
        if stop or last or step % settings.training.checkpoint_every == 0:
            guard.check()
            checkpoints.save(step, state, {"config": settings.values(), "archive": data}, force=True)
        if (stop or last) and (said := checkpoints.wait()):
            log.note(said)
        if stop and not last:
            log.note(f"asked to stop: saved step {step}; the same command goes on from there")
            raise SystemExit(0)
    return state


class _Guard:
    """Notices a loss that is not finite without waiting for every step, and before such a state is saved."""

    def __init__(self, checkpoints: Checkpoints, look: Callable[[int], None]):
        self._checkpoints, self._look = checkpoints, look
        self._unseen: dict[int, Any] = {}

    def watch(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        self._unseen[step] = (metrics["loss"], metrics["grad_norm"])

    def check(self) -> None:
        """Raises FloatingPointError naming the first bad step since the last check, and what is left to go on from.

        Where the step's data is at fault `look` raises ValueError, which names channel and time.
        """
        for step, (loss, grad_norm) in jax.device_get(self._unseen).items():
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                self._look(step)
                raise FloatingPointError(
                    f"step {step}: loss={loss}, grad_norm={grad_norm}. No value of its data is missing: lower "
                    "--config.optimizer.peak_rate, lengthen --config.optimizer.warmup_epochs, or say "
                    f"--config.model.compute_dtype=float32, {self._where_to_begin()}"
                )
        self._unseen.clear()

    def _where_to_begin(self) -> str:
        steps, workdir = self._checkpoints.steps(), self._checkpoints.directory.parent
        if not steps:
            return f"in the same workdir, {workdir}: no checkpoint was saved before"
        return (
            f"in another run that starts here: --workdir=NEW --config.training.init_from={workdir}@{steps[-1]} "
            f"--config.training.init_moments=True; there are {steps}: the last good checkpoint is step {steps[-1]}, or "
            "one before where its parameters have grown out of bounds already"
        )


def _look_for_missing(settings: Settings, frames: Frames, starts: np.ndarray, step: int, leads: Sequence[int]) -> None:
    """Reads a step's samples again; ValueError, with channel and time, where one lacks values that it should have.

    `leads` are those of the targets, in the archive's steps.
    """
    options = dict(seed=settings.seed, step=step - 1, batch_size=settings.training.batch_size)
    chosen = sample_starts(starts, block=settings.data.block, **options)
    times = np.asarray(settings.training.leads)[sample_leads(settings.training.leads, **options)]
    for offset in (0, *[lead * times for lead in leads], *[-1] * (settings.model.history == 2)):
        frames.read(chosen + offset)


def _mean_loss(
    training: build.Training,
    settings: Settings,
    state: TrainState,
    batches: Iterable[Batch],
    standardization: Any,
    look: Callable[..., None],
) -> float:
    """The mean loss over some batches, with the parameters that would forecast."""
    params = state.ema if settings.training.ema_decay else state.params
    losses = [training.eval_loss(params, batch, standardization, None) for batch in batches]
    for number, loss in enumerate(losses, 1):
        if not math.isfinite(float(loss)):
            look(number, validation=True)
    return sum(float(loss) for loss in losses) / len(losses)


def _account(
    settings: Settings, training: build.Training, state: TrainState, batch: Batch, standardization: Any, train_step: Any
) -> str:
    """The account of memory of a step on the mesh in use, with the compiler's own below it."""
    key = jax.random.key(settings.seed) if training.shape.dropout_rate else None
    mesh = jax.sharding.get_abstract_mesh()
    entries = account_step(mesh, state, batch, loss=training.loss, rest=(standardization, key))
    return format_account(entries, train_step)


def _open_checkpoints(settings: Settings, workdir: pathlib.Path, say: Callable[[str], None]) -> Checkpoints:
    options = settings.training
    return open_checkpoints(
        workdir / workdirs.CHECKPOINTS,
        every=options.checkpoint_every,
        keep=options.keep_checkpoints,
        keep_every=options.keep_every,
        keep_hours=options.keep_hours,
        keep_best=options.keep_best,
        on_damage=options.on_damage,
        say=say,
    )


def _open_log(
    settings: Settings, workdir: pathlib.Path, training: build.Training, first_step: int, *, rollout: int
) -> RunLog:
    hardware = find_device(jax.devices()[0].device_kind)
    batch_size, lead_steps = settings.training.batch_size, settings.training.lead_steps
    members = settings.training.members
    return open_log(
        workdir,
        first_step=first_step,
        last_step=training.steps,
        every=settings.training.log_every,
        batch_size=batch_size,
        flops_per_step=rollout * float(train_flops(training.shape, batch=batch_size * members, repeats=lead_steps)),
        peak_flops=hardware and hardware.peak(build.compute_dtype(settings).name),
    )


def make_parser() -> command_line.Parser:
    """The command line's options."""
    parser = command_line.make_parser("experiments.train", __doc__)
    command_line.add_config(parser)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run; one that exists is resumed")
    command_line.add_data(parser, "default: the config's own data")
    about = "resume a run on another archive than the one it began with; its statistics stay its own"
    parser.add_argument("--accept-data", action="store_true", help=about)
    about = "go on from this checkpoint, not from the last; later ones are put aside"
    parser.add_argument("--step", type=command_line.integer(1), metavar="N", help=about)
    about = "take the workdir from another run that holds it, which then ends"
    parser.add_argument("--take-over", action="store_true", help=about)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    settings = command_line.read_settings(options)
    distributed.initialize()
    workdir = pathlib.Path(options.workdir).expanduser().resolve()
    choices = dict(accept_data=options.accept_data, step=options.step, take_over=options.take_over)
    run = train(settings, workdir, options.data, **choices)
    if settings.evaluation.final:
        evaluate.score(run)
        forecast.write(run, plot=run.path / forecast.PLOT_FILE)


if __name__ == "__main__":
    command_line.run(main)
