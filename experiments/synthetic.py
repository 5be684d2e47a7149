"""A config's training problem without its data: the real sizes, step and state, on random fields or described alone.

Programs that plan, compare meshes or measure need the grid and the channels of a run, not its weather.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from weathermixer.archive.loader import Batch
from weathermixer.archive.reference import Reference
from weathermixer.archive.standardization import Standardization, place_terms
from weathermixer.fields.forcings import TERMS
from weathermixer.fields.grid import Grid
from weathermixer.fields.variables import ERA5, ChannelSet, parse_channel
from weathermixer.model.shape import ModelShape
from weathermixer.parallel.mesh import put, sharding, use_mesh
from weathermixer.runs import build
from weathermixer.runs.settings import Settings
from weathermixer.training.state import TrainState, describe


def find_sizes(settings: Settings, *, data: str | None, grid: tuple[int, int]) -> tuple[ModelShape, ChannelSet]:
    """The model's sizes and channels on an archive, or on `grid` = (lat, lon) points with ERA5's channels.

    Channels and static fields that the config names are used in either case.
    """
    if data:
        archive = build.open_data(settings, data)
        channel_set = build.make_channel_set(settings, archive)
        return build.make_model_shape(settings, archive.grid.shape, channel_set), channel_set
    static = ERA5.static if settings.data.static == ("*",) else settings.data.static
    names = settings.data.channels or ERA5.names
    channel_set = build.assign_roles(settings, [parse_channel(name) for name in names], static)
    return build.make_model_shape(settings, grid, channel_set), channel_set


def make_training(
    settings: Settings, shape: ModelShape, channel_set: ChannelSet, mesh: Mesh | AbstractMesh
) -> build.Training:
    """What trains the config on these sizes, on the mesh in use."""
    reference, starts = make_reference(channel_set, shape.grid), 100 * settings.training.batch_size
    return build.make_training(settings, reference, starts=starts, mesh=mesh)


def simulate_devices(number: int) -> None:
    """Makes the CPU show `number` devices; before jax is used. Raises ValueError where it is too late."""
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", number)
    except RuntimeError as error:
        if jax.device_count() < number:
            raise ValueError(f"jax shows {jax.device_count()} devices, not {number}, and was used already") from error


def compile_step(settings: Settings, shape: ModelShape, channel_set: ChannelSet, mesh: Mesh) -> Any:
    """The compiled training step of a config on a mesh, from descriptions of its arguments alone."""
    with use_mesh(mesh):
        training = make_training(settings, shape, channel_set, mesh)
        arguments = describe_arguments(training, channel_set, mesh, batch_size=settings.training.batch_size)
        return training.train_step.lower(*arguments).compile()


def make_grid(lat: int, lon: int) -> Grid:
    """Equally spaced points, none at the poles."""
    return Grid(90 - (np.arange(lat) + 0.5) * 180 / lat, np.arange(lon) * 360 / lon)


def describe_arguments(
    training: build.Training, channel_set: ChannelSet, mesh: Mesh | AbstractMesh, *, batch_size: int
) -> tuple[TrainState, Batch, Standardization]:
    """The arguments of a training step as ShapeDtypeStructs with shardings: no memory is taken."""
    shape = training.shape
    with (jax.sharding.use_abstract_mesh if isinstance(mesh, AbstractMesh) else use_mesh)(mesh):
        state = describe(jax.eval_shape(training.initial_state), mesh)

    def array(dtype: Any, size: Sequence[int], *names: str | None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(tuple(size), dtype, sharding=sharding(mesh, *names))

    fields = (shape.channels, *shape.grid)
    frames = array(jnp.float16, (batch_size, *fields), "batch", "channel", "lat", "lon")
    vector = array(jnp.float32, fields[:1], "channel")
    static = array(jnp.float32, fields, "channel", "lat", "lon")
    standardization = Standardization(vector, vector, vector, vector, vector, static)
    if channel_set.output_only:
        standardization = dataclasses.replace(standardization, seen=vector)
    terms = None
    if channel_set.forcings:
        lat, lon = array(jnp.float32, fields[1:2], "lat"), array(jnp.float32, fields[2:], "lon")
        standardization = dataclasses.replace(standardization, latitude=lat, longitude=lon)
        terms = array(jnp.float32, (batch_size, shape.channels, TERMS), "batch", "channel", None)
    lead = array(jnp.int32, (batch_size,), "batch") if shape.leads > 1 else None
    batch = _arrange(lambda _: frames, lambda _: terms, history=shape.history, rollout=training.rollout, lead=lead)
    return state, batch, standardization


def _arrange(
    frames: Callable[[int], Any], terms: Callable[[int], Any], *, history: int, rollout: int, lead: Any
) -> Batch:
    """A batch of frames and forcings' coefficients, by how many steps after the inputs they are."""
    seen_before = history == 2
    return Batch(
        frames(0),
        frames(1),
        previous=frames(-1) if seen_before else None,
        terms=terms(0),
        previous_terms=terms(-1) if seen_before else None,
        later=tuple(map(frames, range(2, rollout + 1))),
        later_terms=tuple(map(terms, range(1, rollout))),
        lead=lead,
    )


def make_reference(channel_set: ChannelSet, grid: tuple[int, int], *, missing: Sequence[str] = ()) -> Reference:
    """Of standardized fields; a channel's 6 h tendency is a tenth of its spread, static fields are random."""
    one, rng = np.ones(len(channel_set.stored)), np.random.default_rng(1)
    static = {name: rng.standard_normal(grid, np.float32) for name in channel_set.static}
    fill = np.where(np.isin(channel_set.stored_names, missing), 0.0, np.nan)
    return Reference(channel_set, make_grid(*grid), 6, 0 * one, one, 0.1 * one, fill, static)


def make_batch(
    channel_set: ChannelSet,
    grid: tuple[int, int],
    mesh: Mesh,
    *,
    batch_size: int,
    step: int,
    history: int = 1,
    rollout: int = 1,
    leads: int = 1,
    missing: Sequence[str] = (),
) -> Batch:
    """Random frames of a step, stored as float16: each a tenth of noise from the one before; the same on every mesh.

    Channels that are `missing` have no value at a third of the points, the same ones in all frames.
    """
    rng = np.random.default_rng([2, step])
    size = (batch_size, len(channel_set.stored), *grid)

    def change(fields: np.ndarray) -> np.ndarray:
        return fields + 0.1 * rng.standard_normal(size, np.float32)

    fields = {0: rng.standard_normal(size, np.float32)}
    fields[1] = change(fields[0])
    lead = put(rng.integers(leads, size=batch_size).astype(np.int32), mesh, "batch") if leads > 1 else None
    fields |= {number: change(fields[1]) for number in range(2, rollout + 1)}
    if history == 2:
        fields[-1] = change(fields[0])
    land = np.random.default_rng(4).random(grid) < 1 / 3
    lost = np.isin(channel_set.stored_names, missing)[:, None, None] & land
    times = np.datetime64("2000-01-01", "ns") + (batch_size * step + np.arange(batch_size)) * np.timedelta64(6, "h")

    def frames(number: int) -> Any:
        padding = ((0, 0), (0, channel_set.size - size[1]), (0, 0), (0, 0))
        whole = np.pad(np.where(lost, np.nan, fields[number]).astype(np.float16), padding)
        return jax.device_put(whole, sharding(mesh, "batch", "channel", "lat", "lon"))

    def terms(number: int) -> Any:
        return place_terms(channel_set, times + number * np.timedelta64(6, "h"), mesh, step_hours=6)

    return _arrange(frames, terms, history=history, rollout=rollout, lead=lead)
