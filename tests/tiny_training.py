"""A training problem small enough for a test, on any mesh: five channels, padded to eight with an exact mask."""

import contextlib
import dataclasses
from typing import Any

import jax
import numpy as np

from experiments import synthetic
from weathermixer.archive.reference import Reference
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


class Tiny(synthetic.Problem):
    """The problem on its mesh."""

    @property
    def channel_set(self) -> Any:
        return self.reference.channel_set

    def run(self, *, steps: int) -> tuple[np.ndarray, Any]:
        """Losses of the first steps, and the state after them."""
        losses = []
        with use_mesh(self.mesh):
            state = jax.jit(self.training.initial_state)()
            for step in range(steps):
                state, metrics = self.training.train_step(state, self.make_batch(step), self.standardization)
                losses.append(float(metrics["loss"]))
        return np.array(losses), state


def lack_values(reference: Reference, missing: tuple[str, ...]) -> Reference:
    """Of channels some of which lack values: a made-up batch has none of theirs at a third of the points."""
    fill = np.where(np.isin(reference.channel_set.stored_names, missing), 0.0, np.nan)
    return dataclasses.replace(reference, fill=fill)


def make_tiny(
    sizes: tuple[int, int, int], *, grid: tuple[int, int] = GRID, missing: tuple[str, ...] = (), **options: Any
) -> Tiny:
    """The problem on the mesh of these sizes; channels that are `missing` have no values at a third of the points."""
    settings, mesh = tiny_settings(**options), make_mesh(*sizes)
    with use_mesh(mesh):
        problem = synthetic.make_problem(settings, mesh, grid=grid)
        return Tiny(settings, lack_values(problem.reference, missing), mesh, problem.training)
