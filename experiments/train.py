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
import itertools
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from experiments import command_line, ends, evaluate, forecast
from weathermixer.archive.boxes import read_amplification
from weathermixer.archive.loader import Batch
from weathermixer.archive.reference import describe_roles
from weathermixer.parallel import distributed
from weathermixer.parallel.mesh import check_divides, make_mesh, use_mesh
from weathermixer.planning.account import account_step, format_account
from weathermixer.planning.hardware import find_device
from weathermixer.planning.work import parameters, train_flops
from weathermixer.runs import build, fork
from weathermixer.runs import workdir as workdirs
from weathermixer.runs.owner import own_workdir
from weathermixer.runs.run import Run
from weathermixer.runs.samples import Samples, find_samples
from weathermixer.runs.settings import Settings
from weathermixer.runs.workdir import describe_archive, write_record
from weathermixer.training.checkpoint import Checkpoints, software_versions
from weathermixer.training.phases import Phases
from weathermixer.training.state import TrainState, describe
from weathermixer.training.telemetry import RunLog
from weathermixer.training.trackers import check_trackers

PROFILE = "profile"
COMPILED = "compiled"


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
    phases = phases or Phases()
    if data and "://" not in data:
        data = os.path.abspath(os.path.expanduser(data))
    if jax.default_backend() != "cpu" and not jax.config.jax_compilation_cache_dir:
        # a restart then compiles nothing; programs for one CPU may not run on another
        jax.config.update("jax_compilation_cache_dir", str(workdir / COMPILED))
    distributed.check_same(flatten_dict(settings.values(), sep=".") | software_versions(), "the run")
    with own_workdir(workdir, take_over=take_over):
        mesh = make_mesh(settings.mesh.data, settings.mesh.domain, settings.mesh.tensor)
        parts = settings.training.accumulate
        what = "batch_size" if parts == 1 else "batch_size / accumulate"
        check_divides(mesh, **{what: ("batch", settings.training.batch_size // parts)})
        workdirs.check_workdir(settings, workdir)
        check_trackers(settings.training.trackers)
        with phases("making data"):
            archive = build.open_data(settings, data)
        if settings.evaluation.final:
            check_divides(mesh, **{"evaluation.batch_size": ("batch", settings.evaluation.batch_size)})
            evaluate.check(settings, archive)
        distributed.check_same(describe_archive(archive) | {"path": ""}, "the archive")  # which may differ by host
        samples = find_samples(settings, workdir, archive, mesh, accept_data=accept_data)
        with use_mesh(mesh), ends.failing(workdir), phases("computing"):
            return _train(samples, workdir, data, step, phases, profile)


def _train(
    samples: Samples,
    workdir: pathlib.Path,
    data: str | None,
    step: int | None,
    phases: Phases,
    profile: tuple[int, int] | None,
) -> Run:
    settings, record, said = samples.settings, samples.record, []
    options, training = settings.training, samples.make_training(rollout=1)
    keep = dict(keep=options.keep_checkpoints, keep_every=options.keep_every, keep_hours=options.keep_hours)
    keep |= dict(keep_best=options.keep_best, on_damage=options.on_damage)
    hardware = find_device(jax.devices()[0].device_kind)
    rates = dict(every=options.log_every, batch_size=options.batch_size)
    rates |= dict(trackers=options.trackers, settings=flatten_dict(settings.values(), sep="."))
    rates["peak_flops"] = hardware and hardware.peak(build.compute_dtype(settings).name)
    with (
        Checkpoints(workdir / workdirs.CHECKPOINTS, **keep, say=said.append) as checkpoints,
        ends.failing(workdir),  # once more: said before checkpoints are closed, which may wait for other processes
        ends.explained(settings, training.shape, samples.mesh),
    ):
        phases.saving = checkpoints.saving
        with phases("restoring"):
            first_step, state, origin = _begin(samples, training, checkpoints, step)
        workdirs.write_settings(settings, workdir, archive=data)
        record = dataclasses.replace(record, history=record.history + origin)
        write_record(record, workdir)
        with RunLog(workdir, phases, first_step=first_step, last_step=training.steps, **rates) as log:
            for line in (*_introduce(samples), *said, *(f"starts from the {parent}" for parent in origin)):
                log.note(line)
            checkpoints.say = log.note
            log.note(f"{parameters(training.shape):,} parameters, steps {first_step} to {training.steps}")
            for first, last, rollout in build.rollout_stages(settings, first_step, training.steps):
                training = samples.make_training(rollout=rollout)
                stage = Stage(samples, training, first, last, workdir, data, checkpoints, log, phases)
                state = stage.run(state, profile)
            with phases("saving"):
                checkpoints.wait()
            log.account(training.steps)
    params = state.ema if options.ema_decay else state.params
    return Run(workdir, settings, record.reference, data, samples.mesh, training.apply, params, training.steps)


def _begin(
    samples: Samples, training: build.Training, checkpoints: Checkpoints, step: int | None
) -> tuple[int, TrainState, tuple[str, ...]]:
    """(step, state, what it was made of) to go on from: of a checkpoint, of another run, or new.

    Raises ValueError where a run that has done so many steps has nothing left to train.
    """
    workdir, archive = checkpoints.directory.parent, samples.archive
    first_step = checkpoints.resume(step)
    if first_step > training.steps:
        raise ValueError(f"{workdir} has done {first_step} steps: training.steps={training.steps} are fewer")
    if first_step == training.steps and samples.record.archive["checksum"] != archive.attributes.get("checksum"):
        raise ValueError(
            f"{workdir} has done all of its {first_step} steps: on {archive.path} nothing is left to train; "
            f"train another from it: --workdir=NEW --config.training.init_from={workdir}"
        )
    if first_step:
        target = describe(jax.eval_shape(training.initial_state), samples.mesh)
        state = checkpoints.restore(target, first_step)
        checkpoints.put_aside(first_step)
        return first_step, state, ()
    if samples.settings.training.init_from:
        state, origin = fork.fork_state(training, samples.settings, samples.record.reference.channel_set, samples.mesh)
        return 0, state, (origin,)
    return 0, jax.jit(training.initial_state)(), ()


def _introduce(samples: Samples) -> Iterator[str]:
    """The log's first lines: machine, data, and how much is read."""
    archive, mesh, reference = samples.archive, samples.mesh, samples.record.reference
    yield f"{distributed.describe()}, mesh {dict(mesh.shape)}"
    yield f"{archive.path}: {len(samples.starts)} training pairs of {len(reference.channel_set.dynamic)} channels"
    yield from describe_roles(reference)
    excess = read_amplification(archive, reference.channel_set, mesh, processes=[mesh.local_devices])
    made_for = f"domain={archive.attributes['domain']}, tensor={archive.attributes['tensor']}"
    yield f"an archive for {made_for}: this process reads {excess:.2f} times the bytes that it needs"


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
    unseen: dict[int, tuple[jax.Array, jax.Array]] = dataclasses.field(default_factory=dict)  # of steps: see _check

    def run(self, state: TrainState, profile: tuple[int, int] | None) -> TrainState:
        """Trains; SystemExit where it is asked to stop, with the last step saved."""
        settings, samples, log, rollout = self.samples.settings, self.samples, self.log, self.training.rollout
        size = settings.training.batch_size * settings.training.members
        flops = float(train_flops(self.training.shape, batch=size, repeats=settings.training.lead_steps))
        log.begin_stage(flops_per_step=rollout * flops)
        hours = settings.training.lead_steps * samples.archive.step_hours
        train_step, step, stop = None, self.first, False
        with samples.open_batches(samples.starts, self.first, self.last, rollout=rollout) as batches:
            about = f"steps {self.first} to {self.last}: forecasts of {rollout} x {hours} h"
            log.note(f"{about}; reading takes at most {batches.host_bytes / 1e9:.3g} GB of host memory")
            steps = enumerate(log.watch(batches, account=batches.account), self.first + 1)
            with contextlib.suppress(distributed.Interrupted):
                for step, batch in self._traced(steps, profile):
                    if train_step is None:  # compiled here, so that the account tells what the compiler plans for
                        train_step = self._compile(state, batch)
                    state, metrics = train_step(state, batch, samples.frames.standardization)
                    if log.step(step, metrics):  # of the steps before: this one is still under way
                        self._check()
                    self.unseen[step] = metrics["loss"], metrics["grad_norm"]
                    self.phases.alive()
                    self.checkpoints.look()
                    if stop := distributed.preempted(step):
                        break
                    if save := step == self.last or step % settings.training.checkpoint_every == 0:
                        self._save(step, state)
                    every = settings.evaluation.every
                    if every and (step == self.training.steps or step % every == 0):
                        with self.phases("evaluation" if save else "validation"):
                            params = state.ema if settings.training.ema_decay else state.params
                            loss = samples.validate(self.training, params, self.phases.alive)
                            looks, began = {}, time.perf_counter()
                            if settings.evaluation.validation_lead_hours:
                                looks = samples.score(self.training, params)
                                looks["scores_seconds"] = time.perf_counter() - began
                        log.record(step, {"validation_loss": loss} | looks)
                        self.checkpoints.rate(step, loss)
            for problem in batches.account().skipped:
                log.note(f"skipped a sample: {problem}")
        if stop or step < self.last:
            self._stop(step, state)
        return state

    def _traced(self, steps: Iterator[Any], profile: tuple[int, int] | None) -> Iterator[Any]:
        """The same (step, batch); process 0 writes a trace of `count` steps, profile=(step, count), to the workdir."""
        first, count = profile or (0, 0)
        if self.first < first <= self.last and jax.process_index() == 0:
            yield from itertools.islice(steps, first - 1 - self.first)
            with jax.profiler.trace(self.workdir / PROFILE):
                yield from itertools.islice(steps, count + 1)  # the one after them waits for the last
        yield from steps

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

    def _save(self, step: int, state: TrainState) -> None:
        with self.phases("saving"):
            self._check()
            meta = {"config": self.samples.settings.values(), "archive": self.data}
            self.checkpoints.save(step, state, meta)
        self.log.account(step)

    def _stop(self, step: int, state: TrainState) -> None:
        """Saves; raises SystemExit, but where nothing is left to train."""
        self.log.flush()
        if step:
            self._save(step, state)
            with self.phases("saving"):
                self.checkpoints.wait()
        said = f"asked to stop: {f'saved step {step}' if step else 'at step 0'}; the same command goes on from there"
        self.log.note(said)
        if step < self.training.steps:
            if jax.process_index() == 0:
                ends.write_end(self.workdir, distributed.PREEMPTED, said)
            raise SystemExit(distributed.PREEMPTED)

    def _check(self) -> None:
        """Raises FloatingPointError naming the first bad step since the last look, and what is left to go on from.

        Not for every step, which would have to be waited for, but before a state is saved. Where the step's data is at
        fault it is a ValueError, which names channel and time.
        """
        for step, (loss, grad_norm) in jax.device_get(self.unseen).items():
            if math.isfinite(loss) and math.isfinite(grad_norm):
                continue
            self.samples.check(self.samples.starts, step, rollout=self.training.rollout)
            saved, where = self.checkpoints.steps(), "in the same workdir: no checkpoint was saved before"
            if saved:
                where = (
                    "in another run that starts here: --workdir=NEW "
                    f"--config.training.init_from={self.workdir}@{saved[-1]} --config.training.init_moments=True; "
                    f"there are {saved}: the last good checkpoint is step {saved[-1]}, or one before where its "
                    "parameters have grown out of bounds already"
                )
            raise FloatingPointError(
                f"step {step}: loss={loss}, grad_norm={grad_norm}. No value of its data is missing: lower "
                "--config.optimizer.peak_rate, lengthen --config.optimizer.warmup_epochs, or say "
                f"--config.model.compute_dtype=float32, {where}"
            )
        self.unseen.clear()


def make_parser() -> command_line.Parser:
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
