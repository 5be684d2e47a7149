"""A config's training problem without its data: the real sizes, step and state, on random fields or described alone.

Programs that plan, compare meshes or measure need the grid and the channels of a run, not its weather.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from weathermixer import Batch, ChannelSet, Grid, ModelShape, Reference, Settings, Standardization, TrainState
from weathermixer.archive.loader import arrange_batch
from weathermixer.archive.standardization import make_standardization, place_terms
from weathermixer.fields.variables import ERA5, parse_channel
from weathermixer.parallel.mesh import put
from weathermixer.runs import build
from weathermixer.runs.data import open_training_data
from weathermixer.training.state import describe

START, STEP = np.datetime64("2000-01-01", "ns"), np.timedelta64(6, "h")


def find_sizes(settings: Settings, *, data: str | None = None, grid: tuple[int, int]) -> tuple[ModelShape, ChannelSet]:
    """The model's sizes and channels on an archive, or on `grid` = (lat, lon) points with ERA5's channels.

    Channels and static fields that the config names are used in either case.
    """
    if data:
        archive = open_training_data(settings, data)
        grid, channel_set = archive.grid.shape, build.make_channel_set(settings, archive)
    else:
        static = ERA5.static if settings.data.static == ("*",) else settings.data.static
        channels = [parse_channel(name) for name in settings.data.channels or ERA5.names]
        channel_set = build.assign_roles(settings, channels, static)
    return build.make_model_shape(settings, grid, channel_set), channel_set


@dataclasses.dataclass(frozen=True)
class Problem:
    """What trains a config on the mesh in use, and in the place of data made-up fields, or descriptions of them."""

    settings: Settings
    reference: Reference
    mesh: Mesh | AbstractMesh
    training: build.Training

    @functools.cached_property
    def standardization(self) -> Standardization:
        return make_standardization(self.reference, self.mesh)

    def make_batch(self, step: int) -> Batch:
        """Random frames of a step, stored as float16: each a tenth of noise from the one before; alike on every mesh.

        Channels that the reference fills have no value at a third of the points, the same ones in all frames.
        """
        channel_set, grid, rng = self.reference.channel_set, self.reference.grid.shape, np.random.default_rng([2, step])
        size = (self.settings.training.batch_size, len(channel_set.stored), *grid)

        def change(fields: np.ndarray) -> np.ndarray:
            return fields + 0.1 * rng.standard_normal(size, np.float32)

        fields = {0: rng.standard_normal(size, np.float32)}
        fields[1] = change(fields[0])
        lead = rng.integers(len(self.settings.training.leads), size=size[0])
        fields |= {number: change(fields[1]) for number in range(2, max(self.settings.training.rollout) + 1)}
        if self.settings.model.history == 2:
            fields[-1] = change(fields[0])
        lost = np.isfinite(self.reference.fill)[:, None, None] & (np.random.default_rng(4).random(grid) < 1 / 3)
        padding = ((0, 0), (0, channel_set.size - size[1]), (0, 0), (0, 0))

        def frames(number: int) -> np.ndarray:
            return np.pad(np.where(lost, np.nan, fields[number]).astype(np.float16), padding)

        return self._place(frames, step, lead, self.mesh)

    def describe(self) -> tuple[TrainState, Batch, Standardization]:
        """The arguments of the training step as ShapeDtypeStructs with shardings: no memory is taken."""
        mesh, batch_size = self.mesh.abstract_mesh, self.settings.training.batch_size
        frame = np.broadcast_to(
            np.float16(0), (batch_size, self.reference.channel_set.size, *self.reference.grid.shape)
        )
        batch = self._place(lambda number: frame, 0, np.zeros(batch_size), mesh)
        state = jax.eval_shape(self.training.initial_state)
        return describe((state, batch, make_standardization(self.reference, mesh)), self.mesh)

    def _place(
        self, frames: Callable[[int], np.ndarray], step: int, lead: np.ndarray, mesh: Mesh | AbstractMesh
    ) -> Batch:
        """The batch of a step on a mesh, of whole frames by their number; described where the mesh has no devices."""
        training, channel_set = self.settings.training, self.reference.channel_set
        times = START + (training.batch_size * step + np.arange(training.batch_size)) * STEP
        return arrange_batch(
            lambda number: put(frames(number), mesh, "batch", "channel", "lat", "lon"),
            lambda number: place_terms(channel_set, times + number * STEP, mesh, step_hours=6),
            put(lead.astype(np.int32), mesh, "batch") if len(training.leads) > 1 else None,
            history=self.settings.model.history,
            rollout=max(training.rollout),
        )

    def compile(self) -> Any:
        """The compiled training step, from descriptions of its arguments alone."""
        return self.training.train_step.lower(*self.describe()).compile()


def make_problem(
    settings: Settings,
    mesh: Mesh | AbstractMesh,
    *,
    grid: tuple[int, int],
    data: str | None = None,
) -> Problem:
    """The training problem of a config on the mesh in use, of the sizes of `find_sizes`."""
    shape, channel_set = find_sizes(settings, data=data, grid=grid)
    reference, starts = make_reference(channel_set, shape.grid), 100 * settings.training.batch_size
    return Problem(settings, reference, mesh, build.make_training(settings, reference, starts=starts))


def simulate_devices(number: int) -> None:
    """Makes the CPU show `number` devices; before jax is used. Raises ValueError where it is too late."""
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", number)
    except RuntimeError as error:
        if jax.device_count() < number:
            raise ValueError(f"jax shows {jax.device_count()} devices, not {number}, and was used already") from error


def make_grid(lat: int, lon: int) -> Grid:
    """Equally spaced points, none at the poles."""
    return Grid(90 - (np.arange(lat) + 0.5) * 180 / lat, np.arange(lon) * 360 / lon)


def make_reference(channel_set: ChannelSet, grid: tuple[int, int]) -> Reference:
    """Of standardized fields; a channel's 6 h tendency is a tenth of its spread, static fields are random."""
    one, rng = np.ones(len(channel_set.stored)), np.random.default_rng(1)
    static = {name: rng.standard_normal(grid, np.float32) for name in channel_set.static}
    return Reference(channel_set, make_grid(*grid), 6, 0 * one, one, 0.1 * one, np.nan * one, static)
