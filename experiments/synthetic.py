"""A config's training problem without its data: the real sizes, step and state, on random fields or described alone.

Programs that plan, compare meshes or measure need the grid and the channels of a run, not its weather.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from weathermixer.archive.loader import Batch, arrange_batch
from weathermixer.archive.reference import Reference
from weathermixer.archive.standardization import Standardization, make_standardization, place_terms
from weathermixer.fields.forcings import TERMS
from weathermixer.fields.grid import Grid
from weathermixer.fields.variables import ERA5, ChannelSet, parse_channel
from weathermixer.model.shape import ModelShape
from weathermixer.parallel.mesh import put, sharding
from weathermixer.runs import build
from weathermixer.runs.data import open_training_data
from weathermixer.runs.settings import Settings
from weathermixer.training.state import TrainState, describe

STEP = np.timedelta64(6, "h")


def find_sizes(settings: Settings, *, data: str | None, grid: tuple[int, int]) -> tuple[ModelShape, ChannelSet]:
    """The model's sizes and channels on an archive, or on `grid` = (lat, lon) points with ERA5's channels.

    Channels and static fields that the config names are used in either case.
    """
    if data:
        archive = open_training_data(settings, data)
        channel_set = build.make_channel_set(settings, archive)
        return build.make_model_shape(settings, archive.grid.shape, channel_set), channel_set
    static = ERA5.static if settings.data.static == ("*",) else settings.data.static
    names = settings.data.channels or ERA5.names
    channel_set = build.assign_roles(settings, [parse_channel(name) for name in names], static)
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
        batch_size, leads = self.settings.training.batch_size, len(self.settings.training.leads)
        size = (batch_size, len(channel_set.stored), *grid)

        def change(fields: np.ndarray) -> np.ndarray:
            return fields + 0.1 * rng.standard_normal(size, np.float32)

        fields = {0: rng.standard_normal(size, np.float32)}
        fields[1] = change(fields[0])
        lead = put(rng.integers(leads, size=batch_size).astype(np.int32), self.mesh, "batch") if leads > 1 else None
        fields |= {number: change(fields[1]) for number in range(2, max(self.settings.training.rollout) + 1)}
        if self.settings.model.history == 2:
            fields[-1] = change(fields[0])
        land = np.random.default_rng(4).random(grid) < 1 / 3
        lost = np.isfinite(self.reference.fill)[:, None, None] & land
        times = np.datetime64("2000-01-01", "ns") + (batch_size * step + np.arange(batch_size)) * STEP

        def frames(number: int) -> Any:
            padding = ((0, 0), (0, channel_set.size - size[1]), (0, 0), (0, 0))
            whole = np.pad(np.where(lost, np.nan, fields[number]).astype(np.float16), padding)
            return jax.device_put(whole, sharding(self.mesh, "batch", "channel", "lat", "lon"))

        def terms(number: int) -> Any:
            return place_terms(channel_set, times + number * STEP, self.mesh, step_hours=6)

        return self._arrange(frames, terms, lead)

    def describe(self) -> tuple[TrainState, Batch, Standardization]:
        """The arguments of the training step as ShapeDtypeStructs with shardings: no memory is taken."""
        channel_set, batch_size = self.reference.channel_set, self.settings.training.batch_size

        def array(dtype: Any, size: Sequence[int], *names: str | None) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(tuple(size), dtype, sharding=sharding(self.mesh, *names))

        fields = (channel_set.size, *self.reference.grid.shape)
        frames = array(jnp.float16, (batch_size, *fields), "batch", "channel", "lat", "lon")
        vector = array(jnp.float32, fields[:1], "channel")
        static = array(jnp.float32, fields, "channel", "lat", "lon")
        standardization, terms = Standardization(vector, vector, vector, vector, vector, static), None
        if channel_set.output_only:
            standardization = dataclasses.replace(standardization, seen=vector)
        if channel_set.forcings:
            lat, lon = array(jnp.float32, fields[1:2], "lat"), array(jnp.float32, fields[2:], "lon")
            standardization = dataclasses.replace(standardization, latitude=lat, longitude=lon)
            terms = array(jnp.float32, (batch_size, fields[0], TERMS), "batch", "channel", None)
        lead = array(jnp.int32, (batch_size,), "batch") if len(self.settings.training.leads) > 1 else None
        state = describe(jax.eval_shape(self.training.initial_state), self.mesh)
        return state, self._arrange(lambda _: frames, lambda _: terms, lead), standardization

    def _arrange(self, frames: Callable[[int], Any], terms: Callable[[int], Any], lead: Any) -> Batch:
        history, rollout = self.settings.model.history, max(self.settings.training.rollout)
        return arrange_batch(frames, terms, lead, history=history, rollout=rollout)

    def compile(self) -> Any:
        """The compiled training step, from descriptions of its arguments alone."""
        return self.training.train_step.lower(*self.describe()).compile()


def make_problem(
    settings: Settings,
    channel_set: ChannelSet,
    grid: tuple[int, int],
    mesh: Mesh | AbstractMesh,
    *,
    missing: Sequence[str] = (),
) -> Problem:
    """The training problem of a config on these channels and points, on the mesh in use; some channels lack values."""
    reference, starts = make_reference(channel_set, grid, missing=missing), 100 * settings.training.batch_size
    return Problem(settings, reference, mesh, build.make_training(settings, reference, starts=starts, mesh=mesh))


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


def make_reference(channel_set: ChannelSet, grid: tuple[int, int], *, missing: Sequence[str] = ()) -> Reference:
    """Of standardized fields; a channel's 6 h tendency is a tenth of its spread, static fields are random."""
    one, rng = np.ones(len(channel_set.stored)), np.random.default_rng(1)
    static = {name: rng.standard_normal(grid, np.float32) for name in channel_set.static}
    fill = np.where(np.isin(channel_set.stored_names, missing), 0.0, np.nan)
    return Reference(channel_set, make_grid(*grid), 6, 0 * one, one, 0.1 * one, fill, static)
