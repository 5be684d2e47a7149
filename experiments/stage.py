"""The loop of training: a run's steps with one loss, with looks at the validation period and saves between them."""

import contextlib
import dataclasses
import itertools
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from experiments import ends
from weathermixer import Batch, Checkpoints, TrainState, account_step
from weathermixer.parallel import distributed
from weathermixer.planning.account import format_account
from weathermixer.planning.work import train_flops
from weathermixer.runs.build import Training
from weathermixer.runs.samples import Samples
from weathermixer.training.phases import Phases
from weathermixer.training.telemetry import RunLog

PROFILE = "profile"


@dataclasses.dataclass(frozen=True)
class Stage:
    """The part of a run from step `first` until `last`, with one loss: steps, with validation and saves between."""

    samples: Samples
    training: Training
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
