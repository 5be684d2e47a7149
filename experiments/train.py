"""Trains a WeatherMixer, from a config to a checkpoint; the same command goes on where a run was stopped.

  python -m experiments.train --config=NAME --workdir=DIR [--data=ARCHIVE] [--config.FIELD=VALUE]

Start with the quickstart, which simulates its own small atmosphere and ends with scores, a forecast and a map:

  python -m experiments.train --config=quickstart --workdir=runs/quickstart

Configs: quickstart (simulated, minutes on a laptop), gfs_wind (real analyses, small), reference (the published 1.06 B
model at 0.25 degrees), or a file of your own: --config=own.py. Every field of a config is documented in
weathermixer/runs/settings.py and can be set on the command line: --config.training.steps=200 --config.mesh.domain=4.

DIR receives config.json, log.txt, metrics.jsonl, tensorboard/, checkpoints/, ended.json (how the run ended) and, where
the config asks for them, scores.json, forecast.zarr and forecast.png. To try meshes without GPUs, simulate devices:
XLA_FLAGS=--xla_force_host_platform_device_count=8. On several machines start one process on each: see launch/.
"""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments import command_line, ends, evaluate, fits, forecast
from weathermixer.archive.archive import Archive
from weathermixer.archive.boxes import read_amplification
from weathermixer.archive.frames import Frames, archive_frames
from weathermixer.archive.loader import Batch, Batches, make_batches
from weathermixer.archive.reference import Reference, describe_roles
from weathermixer.archive.sampling import sample_leads, sample_starts, valid_starts, with_previous
from weathermixer.parallel import distributed
from weathermixer.parallel.mesh import check_divides, make_mesh, use_mesh
from weathermixer.planning.account import account_step, format_account
from weathermixer.planning.hardware import find_device
from weathermixer.planning.work import parameters, train_flops
from weathermixer.runs import build, fork
from weathermixer.runs import workdir as workdirs
from weathermixer.runs.owner import own_workdir
from weathermixer.runs.record import Record, describe_archive, write_record
from weathermixer.runs.run import Run
from weathermixer.runs.settings import Settings
from weathermixer.training.checkpoint import Checkpoints, open_checkpoints, saved_steps, software_versions
from weathermixer.training.phases import Phases
from weathermixer.training.state import TrainState, describe
from weathermixer.training.telemetry import RunLog, open_log

PROFILE = "profile"


def train(
    settings: Settings,
    workdir: pathlib.Path,
    data: str | None = None,
    *,
    accept_data: bool = False,
    step: int | None = None,
    take_over: bool = False,
    phases: Phases | None = None,
    profile: tuple[int, int] | None = None,
) -> Run:
    """Runs the training that a config describes, from its last checkpoint if there is one, and returns the trained run.

    `step` goes on from that checkpoint instead; `phases` tell where it stands; `profile` is (step, count) of a trace.
    Raises ValueError, before long work starts, for what cannot work, as where another run is alive in the workdir
    (`take_over` ends that one), or where processes were told different things; FloatingPointError where the loss is not
    finite; SystemExit(75) where the run was asked to stop, and is saved.
    """
    if data and "://" not in data:
        data = os.path.abspath(os.path.expanduser(data))
    distributed.check_same(workdirs.flatten(settings.values()) | software_versions(), "the run")
    with own_workdir(workdir, take_over=take_over):
        return _train(settings, workdir, data, accept_data, step, phases or Phases(), profile)


def _train(
    settings: Settings,
    workdir: pathlib.Path,
    data: str | None,
    accept_data: bool,
    step: int | None,
    phases: Phases,
    profile: tuple[int, int] | None,
) -> Run:
    mesh = make_mesh(settings.mesh.data, settings.mesh.domain, settings.mesh.tensor)
    parts = settings.training.accumulate
    what = "batch_size" if parts == 1 else "batch_size / accumulate"
    check_divides(mesh, **{what: ("batch", settings.training.batch_size // parts)})
    workdirs.check_workdir(settings, workdir)
    with phases("making data"):
        archive = build.open_data(settings, data)
    if settings.evaluation.final:
        check_divides(mesh, **{"evaluation.batch_size": ("batch", settings.evaluation.batch_size)})
        evaluate.check(settings, archive)
    distributed.check_same(describe_archive(archive) | {"path": ""}, "the archive")  # which may differ by host
    record = workdirs.make_record(settings, workdir, archive, accept_data=accept_data)
    if settings.training.init_from and not saved_steps(workdir / workdirs.CHECKPOINTS):
        record = fork.fork_record(record, settings)
    samples = Samples.find(settings, archive, record, mesh)
    record = dataclasses.replace(record, length=samples.length)

    with use_mesh(mesh), ends.failing(workdir), phases("computing"):
        training = samples.make_training(rollout=1)
        explained = fits.explained(settings, training.shape, mesh)
        # the inner one: what fails is said before checkpoints are closed, which may wait for other processes
        said: list[str] = []
        with _open_checkpoints(settings, workdir, said.append) as checkpoints, ends.failing(workdir), explained:
            phases.saving = checkpoints.saving
            with phases("restoring"):
                first_step = checkpoints.resume(step)
                _check_first(first_step, training, record, archive, workdir)
                state, born = _first_state(samples, training, checkpoints, first_step)
                if born:
                    record = dataclasses.replace(record, history=(*record.history, born))
                    said.append(f"starts from the {born}")
            workdirs.write_settings(settings, workdir, archive=data)
            write_record(record, workdir, shape=training.shape)
            with _open_log(settings, workdir, phases, first_step, training.steps) as log:
                _introduce(log, samples)
                for line in said:
                    log.note(line)
                log.note(f"{parameters(training.shape):,} parameters, steps {first_step} to {training.steps}")
                for first, last, rollout in build.rollout_stages(settings, first_step, training.steps):
                    stage_training = samples.make_training(rollout=rollout)
                    stage = Stage(samples, stage_training, first, last, workdir, data, checkpoints, log, phases)
                    state = stage.run(state, profile)
                with phases("saving"):
                    log.note(checkpoints.wait())
                log.account(training.steps)
    params = state.ema if settings.training.ema_decay else state.params
    return Run(workdir, settings, record.reference, data, mesh, training.apply, params, training.steps)


@dataclasses.dataclass(frozen=True)
class Samples:
    """What a run trains and validates on: an archive's times to start from, in the run's own numbers."""

    settings: Settings
    archive: Archive
    reference: Reference
    mesh: Mesh
    starts: np.ndarray
    held_out: np.ndarray
    length: Any

    @classmethod
    def find(cls, settings: Settings, archive: Archive, record: Record, mesh: Mesh) -> "Samples":
        """ValueError where a period holds none."""
        longest = settings.training.longest_steps * archive.step_hours
        starts, held_out = (
            valid_starts(archive.times, getattr(settings.data, period), longest, step_hours=archive.step_hours)
            for period in ("train", "validation")
        )
        if settings.model.history == 2:
            starts, held_out = (
                with_previous(archive.times, s, step_hours=archive.step_hours) for s in (starts, held_out)
            )
        length = workdirs.find_length(record, settings, len(starts))
        return cls(settings, archive, record.reference, mesh, starts, held_out, length)

    @property
    def lead_hours(self) -> int:
        return self.settings.training.lead_steps * self.archive.step_hours

    @functools.cached_property
    def frames(self) -> Frames:
        return archive_frames(self.archive, self.reference, self.mesh)

    def make_training(self, *, rollout: int) -> build.Training:
        reference = self.reference
        sizes = dict(latitude=reference.grid.latitude, longitudes=reference.grid.shape[1], starts=len(self.starts))
        sizes |= dict(channel_set=reference.channel_set, tendency=reference.tendency, mesh=self.mesh)
        return build.make_training(self.settings, **sizes, rollout=rollout, length=self.length)

    def open(self, starts: np.ndarray, first_step: int, last_step: int, rollout: int) -> Batches:
        options = dict(seed=self.settings.seed, batch_size=self.settings.training.batch_size)
        options |= dict(lead_hours=self.lead_hours, rollout=rollout, history=self.settings.model.history)
        options["leads"] = self.settings.training.leads
        options |= dict(first_step=first_step, last_step=last_step, prefetch=self.settings.data.prefetch)
        options |= dict(block=self.settings.data.block, on_error=self.settings.data.on_error)
        return make_batches(self.archive, self.reference.channel_set, self.mesh, starts=starts, **options)

    def look(self, starts: np.ndarray, step: int, rollout: int) -> None:
        """Reads a step's samples again; ValueError, with channel and time, where one lacks values it should have."""
        training = self.settings.training
        options = dict(seed=self.settings.seed, step=step - 1, batch_size=training.batch_size)
        chosen = sample_starts(starts, block=self.settings.data.block, **options)
        steps = training.lead_steps * np.asarray(training.leads)[sample_leads(training.leads, **options)]
        leads = [number * steps for number in range(1, rollout + 1)]
        for offset in (0, *leads, *[-1] * (self.settings.model.history == 2)):
            self.frames.read(chosen + offset)


def _check_first(
    first_step: int, training: build.Training, record: Record, archive: Archive, workdir: pathlib.Path
) -> None:
    """ValueError where a run that has done so many steps has nothing left to train."""
    if first_step > training.steps:
        raise ValueError(f"{workdir} has done {first_step} steps: training.steps={training.steps} are fewer")
    if first_step == training.steps and record.archive["checksum"] != archive.attributes.get("checksum"):
        raise ValueError(
            f"{workdir} has done all of its {first_step} steps: on {archive.path} nothing is left to train; "
            f"train another from it: --workdir=NEW --config.training.init_from={workdir}"
        )


def _first_state(
    samples: Samples, training: build.Training, checkpoints: Checkpoints, first_step: int
) -> tuple[TrainState, str]:
    """(state, what it is born from) of a checkpoint, of another run, or new."""
    if first_step:
        target = describe(jax.eval_shape(training.initial_state), samples.mesh)
        state = checkpoints.restore(target, step=first_step)
        checkpoints.put_aside(first_step)
        return state, ""
    if samples.settings.training.init_from:
        return fork.fork_state(training, samples.settings, samples.reference.channel_set, samples.mesh)
    return jax.jit(training.initial_state)(), ""


def _introduce(log: RunLog, samples: Samples) -> None:
    """The log's first lines: machine, data, and how much is read."""
    archive, mesh, channel_set = samples.archive, samples.mesh, samples.reference.channel_set
    log.note(f"{distributed.describe()}, mesh {dict(mesh.shape)}")
    log.note(f"{archive.path}: {len(samples.starts)} training pairs of {len(channel_set.dynamic)} channels")
    for line in describe_roles(samples.reference):
        log.note(line)
    excess = read_amplification(archive, channel_set, mesh, processes=[mesh.local_devices])
    made_for = f"domain={archive.attributes['domain']}, tensor={archive.attributes['tensor']}"
    log.note(f"an archive for {made_for}: this process reads {excess:.2f} times the bytes that it needs")


@dataclasses.dataclass(frozen=True)
class Stage:
    """The part of a run from step `first` until `last`, with one loss: steps, with validation and saves between."""

    samples: Samples
    training: build.Training
    first: int
    last: int
    workdir: pathlib.Path
    data: str | None
    checkpoints: Checkpoints
    log: RunLog
    phases: Phases

    def run(self, state: TrainState, profile: tuple[int, int] | None) -> TrainState:
        """Trains; SystemExit where it is asked to stop, with the last step saved."""
        settings, samples, log = self.samples.settings, self.samples, self.log
        size = settings.training.batch_size * settings.training.members
        flops = float(train_flops(self.training.shape, batch=size, repeats=settings.training.lead_steps))
        log.begin_stage(flops_per_step=self.training.rollout * flops)
        guard = _Guard(self.checkpoints, lambda step: samples.look(samples.starts, step, self.training.rollout))
        train_step, step, stop = None, self.first, False
        with self._open_batches() as batches:
            steps = enumerate(log.watch(batches, account=batches.account), self.first + 1)
            with contextlib.suppress(distributed.Interrupted):
                for step, batch in _traced(steps, profile, self.workdir / PROFILE):
                    if train_step is None:  # compiled here, so that the account tells what the compiler plans for
                        train_step = self._compile(state, batch)
                    state, metrics = train_step(state, batch, samples.frames.standardization)
                    if log.step(step, metrics):  # of the steps before: this one is still under way
                        guard.check()
                    guard.watch(step, metrics)
                    self.phases.alive()
                    log.note(self.checkpoints.saved())
                    if stop := distributed.preempted(step):
                        break
                    save = step == self.last or step % settings.training.checkpoint_every == 0
                    if save:
                        self._save(step, state, guard)
                    every = settings.evaluation.every
                    if every and (step == self.training.steps or step % every == 0):
                        with self.phases("evaluation" if save else "validation"):
                            loss = self._validate(state)
                        log.record(step, {"validation_loss": loss})
                        self.checkpoints.rate(step, loss)
            for problem in batches.account().skipped:
                log.note(f"skipped a sample: {problem}")
        if stop or step < self.last:
            self._stop(step, state, guard)
        return state

    def _open_batches(self) -> Batches:
        samples, rollout = self.samples, self.training.rollout
        batches = samples.open(samples.starts, self.first, self.last, rollout)
        self.log.note(
            f"steps {self.first} to {self.last}: forecasts of {rollout} x {samples.lead_hours} h; reading takes "
            f"at most {batches.host_bytes / 1e9:.3g} GB of host memory"
        )
        return batches

    def _compile(self, state: TrainState, batch: Batch) -> Callable:
        """The step, compiled; the log has the account of memory on the mesh, with the compiler's own below it."""
        standardization = self.samples.frames.standardization
        with self.phases("compiling"):
            train_step = self.training.train_step.lower(state, batch, standardization).compile()
        key = jax.random.key(self.samples.settings.seed) if self.training.shape.dropout_rate else None
        mesh = jax.sharding.get_abstract_mesh()
        entries = account_step(mesh, state, batch, loss=self.training.loss, rest=(standardization, key))
        self.log.note(format_account(entries, train_step))
        return train_step

    def _save(self, step: int, state: TrainState, guard: "_Guard") -> None:
        with self.phases("saving"):
            guard.check()
            meta = {"config": self.samples.settings.values(), "archive": self.data}
            self.checkpoints.save(step, state, meta, force=True)
        self.log.account(step)

    def _stop(self, step: int, state: TrainState, guard: "_Guard") -> None:
        """Saves; raises SystemExit, but where nothing is left to train."""
        self.log.flush()
        if step:
            self._save(step, state, guard)
            with self.phases("saving"):
                self.log.note(self.checkpoints.wait())
        said = f"asked to stop: {f'saved step {step}' if step else 'at step 0'}; the same command goes on from there"
        self.log.note(said)
        if step < self.training.steps:
            if jax.process_index() == 0:
                ends.write_end(self.workdir, distributed.PREEMPTED, said)
            raise SystemExit(distributed.PREEMPTED)

    def _validate(self, state: TrainState) -> float:
        """The mean loss over some batches of the validation period, with the parameters that would forecast."""
        settings, samples = self.samples.settings, self.samples
        params = state.ema if settings.training.ema_decay else state.params
        losses = []
        with samples.open(samples.held_out, 0, settings.evaluation.batches, self.training.rollout) as batches:
            for batch in batches:
                losses.append(self.training.eval_loss(params, batch, samples.frames.standardization, None))
                self.phases.alive()
        for number, loss in enumerate(losses, 1):
            if not math.isfinite(float(loss)):
                samples.look(samples.held_out, number, self.training.rollout)
        return sum(float(loss) for loss in losses) / len(losses)


def _traced(steps: Iterator[Any], profile: tuple[int, int] | None, folder: pathlib.Path) -> Iterator[Any]:
    """The same (step, batch); process 0 writes a trace of `count` of them, profile=(step, count), to a folder."""
    first, count = profile or (0, 0)
    tracing = False
    try:
        for step, batch in steps:
            if step == first and jax.process_index() == 0:
                jax.profiler.start_trace(folder)
                tracing = True
            yield step, batch
            if tracing and step == first + count:  # which has waited for the one before it
                jax.profiler.stop_trace()
                tracing = False
    finally:
        if tracing:
            jax.profiler.stop_trace()


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


def _open_log(settings: Settings, workdir: pathlib.Path, phases: Phases, first_step: int, last_step: int) -> RunLog:
    hardware = find_device(jax.devices()[0].device_kind)
    return open_log(
        workdir,
        phases,
        first_step=first_step,
        last_step=last_step,
        every=settings.training.log_every,
        batch_size=settings.training.batch_size,
        peak_flops=hardware and hardware.peak(build.compute_dtype(settings).name),
    )


def make_parser() -> command_line.Parser:
    """The command line's options."""
    parser = command_line.make_parser("experiments.train", __doc__)
    command_line.add_config(parser)
    add = parser.add_argument
    add("--workdir", required=True, metavar="DIR", help="folder of the run; one that exists is resumed")
    command_line.add_data(parser, "default: the config's own data")
    about = "resume a run on another archive than the one it began with; its statistics stay its own"
    add("--accept-data", action="store_true", help=about)
    about = "go on from this checkpoint, not from the last; later ones are put aside"
    add("--step", type=command_line.integer(1), metavar="N", help=about)
    about = "take the workdir from another run that holds it, which then ends"
    add("--take-over", action="store_true", help=about)
    about = (
        "end a run of which no step is done for so long (compiling, saves and scores may take a multiple); default: 10"
    )
    add("--patience", type=command_line.positive, default=10.0, metavar="MINUTES", help=about)
    about = f"write a trace of COUNT steps from STEP on to DIR/{PROFILE}, for XProf or Perfetto"
    add("--profile", type=command_line.step_and_count, metavar="STEP:COUNT", help=about)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options, phases = make_parser().parse_args(arguments), Phases()
    settings = command_line.read_settings(options)
    if "://" in options.workdir:
        raise ValueError(f"--workdir={options.workdir}: a run is written to a folder: mount the bucket, or sync to it")
    workdir = pathlib.Path(options.workdir).expanduser().resolve()
    distributed.initialize()
    distributed.mind_signals()
    with phases.watched(60 * options.patience, functools.partial(ends.write_end, workdir)):
        choices = dict(accept_data=options.accept_data, step=options.step, take_over=options.take_over)
        try:
            run = train(settings, workdir, options.data, phases=phases, profile=options.profile, **choices)
        except SystemExit as asked:
            distributed.end(asked.code)
        if settings.evaluation.final:
            with phases("scoring"), ends.failing(workdir):
                evaluate.score(run)
                forecast.write(run, plot=run.path / forecast.PLOT_FILE)
    if jax.process_index() == 0:
        ends.write_end(workdir, distributed.FINISHED, f"{run.step} steps")


if __name__ == "__main__":
    command_line.run(main)
