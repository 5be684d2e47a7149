"""A training step compiled for a mesh of the real size on simulated CPU devices, to hold the plan's formulae to."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import build
from weathermixer.account import format_bytes
from weathermixer.cost.layout import StepOptions
from weathermixer.cost.plan import Plan
from weathermixer.data.loader import Batch
from weathermixer.data.standardization import Standardization
from weathermixer.mesh import make_mesh, sharding, use_mesh
from weathermixer.model import ModelShape
from weathermixer.state import TrainState, describe
from weathermixer.variables import ChannelSet


def simulate_devices(number: int) -> None:
    """Makes the CPU show `number` devices; before jax is used. Raises ValueError where it is too late."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", number)
    if jax.device_count() < number:
        raise ValueError(
            f"jax shows {jax.device_count()} devices, not {number}: it was used before they were simulated"
        )


def describe_step(
    config: ConfigDict, shape: ModelShape, channel_set: ChannelSet, mesh: Mesh
) -> tuple[build.Training, tuple[TrainState, Batch, Standardization]]:
    """What trains a config on a mesh, and its step's arguments as ShapeDtypeStructs with shardings: nothing is held."""
    lat, lon = shape.grid
    with use_mesh(mesh):
        training = build.make_training(
            config,
            latitude=np.linspace(90, -90, lat),
            longitudes=lon,
            channel_set=channel_set,
            tendency=np.where(channel_set.predicted, 1.0, 0.0),
            starts=100 * config.training.batch_size,
            mesh=mesh,
        )
        state = describe(jax.eval_shape(training.initial_state), mesh)
    cut = sharding(mesh, "batch", "channel", "lat", "lon")
    frames = jax.ShapeDtypeStruct((config.training.batch_size, shape.channels, lat, lon), jnp.float16, sharding=cut)
    vector = jax.ShapeDtypeStruct((shape.channels,), jnp.float32, sharding=sharding(mesh, "channel"))
    static = jax.ShapeDtypeStruct(
        (shape.channels, lat, lon), jnp.float32, sharding=sharding(mesh, "channel", "lat", "lon")
    )
    names = [field.name for field in dataclasses.fields(Standardization)]
    standardization = Standardization(**{name: static if name == "static" else vector for name in names})
    return training, (state, Batch(frames, frames), standardization)


def compile_step(config: ConfigDict, shape: ModelShape, channel_set: ChannelSet, mesh: Mesh) -> Any:
    """The compiled training step of a config on a mesh."""
    training, arguments = describe_step(config, shape, channel_set, mesh)
    with use_mesh(mesh):
        return training.train_step.lower(*arguments).compile()


def compare(config: ConfigDict, shape: ModelShape, channel_set: ChannelSet, plan: Plan, options: StepOptions) -> str:
    """A plan's memory by formula beside the compiler's, for the step compiled on as many simulated devices."""
    layout = plan.layout
    simulate_devices(layout.devices)
    config.training.batch_size = plan.batch
    config.model.compute_dtype = options.compute_dtype
    memory = compile_step(
        config, shape, channel_set, make_mesh(layout.data, layout.domain, layout.tensor)
    ).memory_analysis()
    parts = plan.memory
    state = sum(parts[name] for name in ("parameters", "moments", "ema"))
    static = shape.channels * shape.grid[0] * shape.grid[1] * 4 / layout.instance
    passing = parts["gradients"] + parts["activations"] + parts["temporaries"]
    rows = [
        ("state, batch, static fields", state + parts["batch"] / 2 + static, memory.argument_size_in_bytes),
        ("gradients, activations, temporaries", passing, memory.temp_size_in_bytes),
    ]
    lines = [f"the step compiled for {layout} simulated CPU devices, bytes per device:"]
    lines += [
        f"  {what:<36} formula {format_bytes(ours):>8}   compiler {format_bytes(theirs):>8}"
        for what, ours, theirs in rows
    ]
    lines.append(
        "  (the CPU's compiler widens bfloat16 and orders its work in its own way: its second figure is larger)"
    )
    return "\n".join(lines)
