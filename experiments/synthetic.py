"""A config's training problem without its data: the real sizes, step and state, on random fields or described alone.

Programs that plan, compare meshes or measure need the grid and the channels of a run, not its weather.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from weathermixer.archive.loader import Batch
from weathermixer.archive.standardization import Standardization
from weathermixer.fields.variables import ERA5, ChannelSet
from weathermixer.model.weathermixer import ModelShape
from weathermixer.parallel.mesh import sharding, use_mesh
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
    channel_set = ChannelSet.from_names(names, static, settings.data.channel_multiple)
    return build.make_model_shape(settings, grid, channel_set), channel_set


def make_training(
    settings: Settings, shape: ModelShape, channel_set: ChannelSet, mesh: Mesh | AbstractMesh
) -> build.Training:
    """What trains the config on these sizes, on the mesh in use; a channel's 6 h tendency is a tenth of its spread."""
    lat, lon = shape.grid
    return build.make_training(
        settings,
        latitude=90 - (np.arange(lat) + 0.5) * 180 / lat,
        longitudes=lon,
        channel_set=channel_set,
        tendency=np.where(channel_set.predicted, 0.1, 0.0).astype(np.float32),
        starts=100 * settings.training.batch_size,
        mesh=mesh,
    )


def describe_arguments(
    training: build.Training, mesh: Mesh | AbstractMesh, *, batch_size: int
) -> tuple[TrainState, Batch, Standardization]:
    """The arguments of a training step as ShapeDtypeStructs with shardings: no memory is taken."""
    shape = training.shape
    with (jax.sharding.use_abstract_mesh if isinstance(mesh, AbstractMesh) else use_mesh)(mesh):
        state = describe(jax.eval_shape(training.initial_state), mesh)
    frames = jax.ShapeDtypeStruct(
        (batch_size, shape.channels, *shape.grid),
        jnp.float16,
        sharding=sharding(mesh, "batch", "channel", "lat", "lon"),
    )
    vector = jax.ShapeDtypeStruct((shape.channels,), jnp.float32, sharding=sharding(mesh, "channel"))
    static = jax.ShapeDtypeStruct(
        (shape.channels, *shape.grid), jnp.float32, sharding=sharding(mesh, "channel", "lat", "lon")
    )
    names = [field.name for field in dataclasses.fields(Standardization)]
    standardization = Standardization(**{name: static if name == "static" else vector for name in names})
    return state, Batch(frames, frames, frames if shape.history == 2 else None), standardization


def make_standardization(channel_set: ChannelSet, grid: tuple[int, int], mesh: Mesh) -> Standardization:
    """Of fields that are stored standardized; static fields are random and the same on every mesh."""
    predicted = channel_set.predicted.astype(np.float32)
    static = np.zeros((channel_set.size, *grid), np.float32)
    first = len(channel_set.dynamic)
    count = len(channel_set.static)
    static[first : first + count] = np.random.default_rng(1).standard_normal((count, *grid), np.float32)

    def vector(values):
        return jax.device_put(np.asarray(values, np.float32), sharding(mesh, "channel"))

    return Standardization(
        scale=vector(predicted),
        offset=vector(0 * predicted),
        mean=vector(0 * predicted),
        std=vector(np.ones_like(predicted)),
        tendency=vector(0.1 * predicted),
        static=jax.device_put(static, sharding(mesh, "channel", "lat", "lon")),
    )


def make_batch(
    channel_set: ChannelSet, grid: tuple[int, int], mesh: Mesh, *, batch_size: int, step: int, history: int = 1
) -> Batch:
    """Random frames of a step, stored as float16: each a tenth of noise from the one before; the same on every mesh."""
    rng = np.random.default_rng([2, step])
    size = (batch_size, len(channel_set.dynamic), *grid)
    inputs = rng.standard_normal(size, np.float32)
    targets = inputs + 0.1 * rng.standard_normal(size, np.float32)

    def place(fields: np.ndarray) -> Any:
        padding = ((0, 0), (0, channel_set.size - size[1]), (0, 0), (0, 0))
        whole = np.pad(fields.astype(np.float16), padding)
        return jax.device_put(whole, sharding(mesh, "batch", "channel", "lat", "lon"))

    previous = place(inputs + 0.1 * rng.standard_normal(size, np.float32)) if history == 2 else None
    return Batch(place(inputs), place(targets), previous)
