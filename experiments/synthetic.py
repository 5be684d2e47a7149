"""A config's training problem without its data: the real sizes, step and state, on random fields or described alone.

Programs that plan, compare meshes or measure need the grid and the channels of a run, not its weather.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from weathermixer.archive.loader import Batch
from weathermixer.archive.reference import Reference
from weathermixer.archive.standardization import Standardization, place_roles, place_terms
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
    reference, starts = make_reference(channel_set, make_grid(*shape.grid)), 100 * settings.training.batch_size
    return build.make_training(settings, reference, starts=starts, mesh=mesh)


def make_reference(channel_set: ChannelSet, grid: Grid) -> Reference:
    """Of standardized fields; a channel's 6 h tendency is a tenth of its spread, static fields are random."""
    one = np.ones(len(channel_set.stored))
    static = {name: np.random.default_rng(1).random(grid.shape, np.float32) for name in channel_set.static}
    return Reference(channel_set, grid, 6, 0 * one, one, 0.1 * one, np.nan * one, static=static)


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
    more = training.rollout - 1
    batch = Batch(
        frames,
        frames,
        frames if shape.history == 2 else None,
        terms,
        terms if shape.history == 2 else None,
        later=(frames,) * more,
        later_terms=(terms,) * more,
        lead=array(jnp.int32, (batch_size,), "batch") if shape.leads > 1 else None,
    )
    return state, batch, standardization


def make_standardization(
    channel_set: ChannelSet, grid: tuple[int, int], mesh: Mesh, *, missing: Sequence[str] = ()
) -> Standardization:
    """Of fields that are stored standardized; static fields are random and the same on every mesh."""
    held = (np.arange(channel_set.size) < len(channel_set.stored)).astype(np.float32)
    static = np.zeros((channel_set.size, *grid), np.float32)
    some = slice(channel_set.first_static, channel_set.first_forcing)
    static[some] = np.random.default_rng(1).standard_normal(static[some].shape, np.float32)

    def vector(values):
        return jax.device_put(np.asarray(values, np.float32), sharding(mesh, "channel"))

    fill = channel_set.pad([0.0 if name in missing else np.nan for name in channel_set.stored_names])
    return Standardization(
        scale=vector(held),
        offset=vector(0 * held),
        mean=vector(0 * held),
        std=vector(np.ones_like(held)),
        tendency=vector(0.1 * held),
        static=jax.device_put(static, sharding(mesh, "channel", "lat", "lon")),
        fill=vector(fill) if missing else None,
        **place_roles(channel_set, make_grid(*grid), mesh),
    )


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
    inputs = rng.standard_normal(size, np.float32)
    targets = inputs + 0.1 * rng.standard_normal(size, np.float32)
    land = np.random.default_rng(4).random(grid) < 1 / 3
    lost = np.isin(channel_set.stored_names, missing)[:, None, None] & land
    times = np.datetime64("2000-01-01", "ns") + (batch_size * step + np.arange(batch_size)) * np.timedelta64(6, "h")

    def place(fields: np.ndarray) -> Any:
        padding = ((0, 0), (0, channel_set.size - size[1]), (0, 0), (0, 0))
        whole = np.pad(np.where(lost, np.nan, fields).astype(np.float16), padding)
        return jax.device_put(whole, sharding(mesh, "batch", "channel", "lat", "lon"))

    def terms(times: np.ndarray) -> Any:
        return place_terms(channel_set, times, mesh, step_hours=6)

    lead = put(rng.integers(leads, size=batch_size).astype(np.int32), mesh, "batch") if leads > 1 else None
    batch = Batch(place(inputs), place(targets), terms=terms(times), lead=lead)
    if rollout > 1:
        later = [targets + 0.1 * rng.standard_normal(size, np.float32) for _ in range(rollout - 1)]
        passed = [times + number * np.timedelta64(6, "h") for number in range(1, rollout)]
        batch = dataclasses.replace(batch, later=tuple(map(place, later)), later_terms=tuple(map(terms, passed)))
    if history == 1:
        return batch
    previous = place(inputs + 0.1 * rng.standard_normal(size, np.float32))
    return dataclasses.replace(batch, previous=previous, previous_terms=terms(times - np.timedelta64(6, "h")))
