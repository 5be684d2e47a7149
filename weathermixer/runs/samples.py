"""What a run trains and validates on: times of an archive to start from, and their batches in the run's own numbers."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from weathermixer.archive import sampling
from weathermixer.archive.archive import Archive
from weathermixer.archive.frames import Frames, archive_frames
from weathermixer.archive.loader import Batches
from weathermixer.forecasting.rollout import check_leads, model_forecaster
from weathermixer.runs import build
from weathermixer.runs.fork import begin_record
from weathermixer.runs.settings import Settings
from weathermixer.runs.workdir import Record, find_record
from weathermixer.verification.evaluation import evaluate


@dataclasses.dataclass(frozen=True)
class Samples:
    """The starts of a run's training and validation, as indices of the archive's times; `record` says its length."""

    settings: Settings
    archive: Archive
    record: Record
    mesh: Mesh
    starts: Int[np.ndarray, " start"]
    held_out: Int[np.ndarray, " held_out"]

    @functools.cached_property
    def frames(self) -> Frames:
        return archive_frames(self.archive, self.record.reference, self.mesh)

    def make_training(self, *, rollout: int) -> build.Training:
        """What trains the run while forecasts are fed back so often."""
        options = dict(starts=len(self.starts), rollout=rollout, length=self.record.length)
        return build.make_training(self.settings, self.record.reference, **options)

    def open_batches(self, starts: np.ndarray, first_step: int, last_step: int, *, rollout: int) -> Batches:
        """The batches of steps first_step ... last_step - 1."""
        settings, data, training = self.settings, self.settings.data, self.settings.training
        options = dict(first_step=first_step, last_step=last_step, seed=settings.seed, batch_size=training.batch_size)
        options |= dict(lead_hours=training.lead_steps * self.archive.step_hours, leads=training.leads, rollout=rollout)
        options |= dict(prefetch=data.prefetch, block=data.block, on_error=data.on_error, starts=starts)
        options["history"] = settings.model.history
        return Batches(self.archive, self.record.reference.channel_set, self.mesh, **options)

    def check(self, starts: np.ndarray, step: int, *, rollout: int) -> None:
        """Reads a step's samples again; ValueError, with channel and time, where one lacks values it should have."""
        training = self.settings.training
        options = dict(seed=self.settings.seed, step=step - 1, batch_size=training.batch_size)
        chosen = sampling.sample_starts(starts, block=self.settings.data.block, **options)
        lead = training.lead_steps * np.asarray(training.leads)[sampling.sample_leads(training.leads, **options)]
        for offset in (*(number * lead for number in range(rollout + 1)), *[-1] * (self.settings.model.history == 2)):
            self.frames.read(chosen + offset)

    def validate(self, training: build.Training, params: Any, alive: Callable[[], None]) -> float:
        """The mean loss over some batches of the validation period; `alive` is called after each.

        Raises as `check` does, where a loss is not finite.
        """
        losses, count = [], self.settings.evaluation.batches
        with self.open_batches(self.held_out, 0, count, rollout=training.rollout) as batches:
            for batch in batches:
                losses.append(training.eval_loss(params, batch, self.frames.standardization, None))
                alive()
        for number, loss in enumerate(losses, 1):
            if not math.isfinite(float(loss)):
                self.check(self.held_out, number, rollout=training.rollout)
        return sum(float(loss) for loss in losses) / len(losses)

    def score(self, training: build.Training, params: Any) -> dict[str, float]:
        """RMSE by lead and channel, {"rmse_24h/z500": ...} in SI units, of some forecasts of the validation period."""
        options, size = self.settings.evaluation, self.settings.training.batch_size // self.settings.training.accumulate
        hours = sorted(set(options.validation_lead_hours))
        about = {"lead_hours": hours, "mode": options.mode, "prescribed": options.prescribed}
        about |= {"history": self.settings.model.history, "leads": self.settings.training.leads}
        model = model_forecaster(training.apply, params, self.frames, **about)
        asked = dict(starts=sampling.spread(self.held_out, options.batches * size), lead_hours=hours, batch_size=size)
        asked |= dict(climatology=None, baselines=False, until=_last(self.settings, self.archive, "validation"))
        rmse = evaluate({"model": model}, self.frames, **asked).rmse.sel(source="model").to_dataframe()
        return {f"rmse_{lead}h/{row.short}": row.rmse for (lead, _), row in rmse.iterrows()}


def _last(settings: Settings, archive: Archive, period: str) -> np.datetime64:
    """The last time of a period, or the archive's first where it holds none."""
    times = archive.times
    return times[sampling.in_period(times, getattr(settings.data, period))].max(initial=times[0])


def find_samples(
    settings: Settings, workdir: pathlib.Path, archive: Archive, mesh: Mesh, *, accept_data: bool = False
) -> Samples:
    """The samples that an archive has for the run in a workdir, a new one or one that goes on.

    Raises ValueError where a period holds none, and as `find_record` and `begin_record` do.
    """
    record = find_record(workdir, archive, accept_data=accept_data) or begin_record(settings, archive)
    starts, held_out = (find_starts(settings, archive, name) for name in ("train", "validation"))
    check_hours(settings, archive, "validation_lead_hours", held_out, "validation")
    steps, warmup = build.training_steps(settings, len(starts))
    if record.length is not None:  # what it began with, however much data it goes on with; at a constant rate any
        steps, warmup = steps if settings.optimizer.schedule == "constant" else record.length[0], record.length[1]
    record = dataclasses.replace(record, length=(steps, warmup))
    return Samples(settings, archive, record, mesh, starts, held_out)


def find_starts(settings: Settings, archive: Archive, period: str) -> Int[np.ndarray, " start"]:
    """The starts of the samples in "train", "validation" or "test"; ValueError, which names it, where there is none."""
    step_hours, dates = archive.step_hours, getattr(settings.data, period)
    lead_hours = settings.training.longest_steps * step_hours
    try:
        starts = sampling.valid_starts(archive.times, dates, lead_hours, step_hours=step_hours)
        two = settings.model.history == 2
        return sampling.with_previous(archive.times, starts, step_hours=step_hours) if two else starts
    except ValueError as error:
        raise ValueError(f"config.data.{period}: {error}") from None


def check_hours(
    settings: Settings, archive: Archive, field: str, starts: Int[np.ndarray, " start"], period: str
) -> None:
    """Raises ValueError for hours, a field of config.evaluation, that no forecast from `starts` reaches in a period."""
    name, hours, times = f"config.evaluation.{field}", getattr(settings.evaluation, field), archive.times
    if not hours:
        return
    check_leads(hours, step_hours=archive.step_hours * settings.training.leads[0], name=name)
    try:
        if settings.model.history == 2 and len(starts):
            starts = sampling.with_previous(times, starts, step_hours=archive.step_hours)
        sampling.valid_indices(times, starts, lead_hours=hours, until=_last(settings, archive, period))
    except ValueError as error:
        raise ValueError(f"{name} in config.data.{period}: {error}") from None
