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

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator

import jax
from flax.traverse_util import flatten_dict

from experiments import command_line, ends, evaluate, forecast, remedies
from experiments.stage import PROFILE, Stage
from weathermixer import Checkpoints, Run, Settings, TrainState, make_mesh
from weathermixer.archive.boxes import read_amplification
from weathermixer.archive.reference import describe_roles
from weathermixer.parallel import distributed
from weathermixer.parallel.mesh import check_divides, use_mesh
from weathermixer.planning.hardware import find_device
from weathermixer.planning.work import parameters
from weathermixer.runs import build, fork
from weathermixer.runs import workdir as workdirs
from weathermixer.runs.data import open_training_data
from weathermixer.runs.owner import own_workdir
from weathermixer.runs.samples import Samples, find_samples
from weathermixer.training.checkpoint import software_versions
from weathermixer.training.phases import Phases
from weathermixer.training.state import describe
from weathermixer.training.telemetry import RunLog
from weathermixer.training.trackers import check_trackers

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
            archive = open_training_data(settings, data)
        if settings.evaluation.final:
            check_divides(mesh, **{"evaluation.batch_size": ("batch", settings.evaluation.batch_size)})
            evaluate.check(settings, archive)
        described = workdirs.describe_archive(archive) | {"path": ""}  # which may differ by host
        distributed.check_same(described, "the archive")
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
        remedies.explained(settings, training.shape, samples.mesh),
    ):
        phases.saving = checkpoints.saving
        with phases("restoring"):
            first_step, state, origin = _begin(samples, training, checkpoints, step)
        workdirs.write_settings(settings, workdir, archive=data)
        record = dataclasses.replace(record, history=record.history + origin)
        workdirs.write_record(record, workdir)
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


def main(arguments: list[str] | None = None) -> None:
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
    ends.run(main)
