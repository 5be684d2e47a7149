"""A training problem small enough for a test, on any mesh: five channels, padded to eight with an exact mask."""

import contextlib
import dataclasses
from typing import Any

import jax
import numpy as np

from experiments import synthetic
from experiments.configs import base
from weathermixer.mesh import make_mesh, use_mesh

GRID = (16, 16)


@contextlib.contextmanager
def quick_compilation():
    """What meshes are compared for does not depend on how hard the compiler tries: half the time."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def tiny_config(**options: Any) -> Any:
    """base.get_config() at a few thousand parameters; options are fields of config.model, .training or .mesh."""
    config = base.get_config()
    config.data.channels = ("2m_temperature", "geopotential_500", "temperature_850", "u_component_of_wind_850")
    config.data.static = ("land_sea_mask",)
    config.data.channel_multiple = 8
    config.model.update(patch=(1, 4), embed=32, token_hidden=16, embed_hidden=64, blocks=1)
    config.training.update(batch_size=8, steps=10)
    config.optimizer.peak_rate = config.optimizer.coder_peak_rate = 1e-3
    for name, value in options.items():
        (part,) = (part for part in (config.model, config.training, config.mesh) if name in part)
        part[name] = value
    return config


@dataclasses.dataclass(frozen=True)
class Tiny:
    """The problem on its mesh."""

    config: Any
    mesh: Any
    channel_set: Any
    training: Any
    standardization: Any

    def batch(self, step: int) -> Any:
        return synthetic.make_batch(
            self.channel_set, GRID, self.mesh, batch_size=self.config.training.batch_size, step=step
        )

    def run(self, *, steps: int) -> tuple[np.ndarray, Any]:
        """Losses of the first steps, and the state after them."""
        losses = []
        with use_mesh(self.mesh):
            state = jax.jit(self.training.initial_state)()
            for step in range(steps):
                state, metrics = self.training.train_step(state, self.batch(step), self.standardization)
                losses.append(float(metrics["loss"]))
        return np.array(losses), state


def make_tiny(sizes: tuple[int, int, int], *, grid: tuple[int, int] = GRID, **options: Any) -> Tiny:
    """The problem on the mesh of these sizes."""
    config, mesh = tiny_config(**options), make_mesh(*sizes)
    with use_mesh(mesh):
        shape, channel_set = synthetic.find_sizes(config, data=None, grid=grid)
        training = synthetic.make_training(config, shape, channel_set, mesh)
        return Tiny(config, mesh, channel_set, training, synthetic.make_standardization(channel_set, grid, mesh))
