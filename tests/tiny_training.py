"""A training problem small enough for a test, on any mesh: five channels, padded to eight with an exact mask."""

import contextlib
import dataclasses
from typing import Any

import jax
import numpy as np

from experiments import synthetic
from weathermixer.archive.standardization import make_standardization
from weathermixer.parallel.mesh import make_mesh, use_mesh
from weathermixer.runs.settings import Settings, make_settings

GRID = (16, 16)


@contextlib.contextmanager
def quick_compilation():
    """What meshes are compared for does not depend on how hard the compiler tries: half the time."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def tiny_settings(**options: Any) -> Settings:
    """Settings of a few thousand parameters; options are fields of data, model, training, loss, mesh or optimizer."""
    values = Settings().values()
    channels = ("2m_temperature", "geopotential_500", "temperature_850", "u_component_of_wind_850")
    values["data"] |= dict(channels=channels, static=("land_sea_mask",), channel_multiple=8)
    values["model"] |= dict(patch=(1, 4), embed=32, token_hidden=16, embed_hidden=64, blocks=1)
    values["training"] |= dict(batch_size=8, steps=10)
    values["optimizer"] |= dict(peak_rate=1e-3, coder_peak_rate=1e-3)
    for name, value in options.items():
        part = next(part for part in ("data", "model", "training", "loss", "mesh", "optimizer") if name in values[part])
        values[part][name] = value
    return make_settings(values)


@dataclasses.dataclass(frozen=True)
class Tiny:
    """The problem on its mesh."""

    settings: Settings
    mesh: Any
    channel_set: Any
    training: Any
    standardization: Any
    missing: tuple[str, ...]

    def batch(self, step: int) -> Any:
        size, history = self.settings.training.batch_size, self.settings.model.history
        rollout = self.training.rollout
        options = dict(batch_size=size, step=step, history=history, missing=self.missing, rollout=rollout)
        options["leads"] = len(self.settings.training.leads)
        return synthetic.make_batch(self.channel_set, GRID, self.mesh, **options)

    def run(self, *, steps: int) -> tuple[np.ndarray, Any]:
        """Losses of the first steps, and the state after them."""
        losses = []
        with use_mesh(self.mesh):
            state = jax.jit(self.training.initial_state)()
            for step in range(steps):
                state, metrics = self.training.train_step(state, self.batch(step), self.standardization)
                losses.append(float(metrics["loss"]))
        return np.array(losses), state


def make_tiny(
    sizes: tuple[int, int, int], *, grid: tuple[int, int] = GRID, missing: tuple[str, ...] = (), **options: Any
) -> Tiny:
    """The problem on the mesh of these sizes; channels that are `missing` have no values at a third of the points."""
    settings, mesh = tiny_settings(**options), make_mesh(*sizes)
    with use_mesh(mesh):
        shape, channel_set = synthetic.find_sizes(settings, data=None, grid=grid)
        training = synthetic.make_training(settings, shape, channel_set, mesh)
        standardization = make_standardization(synthetic.make_reference(channel_set, grid, missing=missing), mesh)
        return Tiny(settings, mesh, channel_set, training, standardization, missing)
