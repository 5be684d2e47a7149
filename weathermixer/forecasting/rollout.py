"""Forecasts of many steps as generators over lead times: a state is dropped as soon as the next one exists.

Everything runs on the mesh in use; predictions come out as global arrays cut like the input.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

MODES = ("autoregressive", "latent")
# apply(params, x, *, repeats=1, key=None) -> standardized prediction, zeros on static and padding channels
Apply = Callable[..., Float[Array, "b n lat lon"]]


def rollout(
    apply: Apply,
    params: Any,
    x: Float[Array, "b n lat lon"],
    *,
    static: Float[Array, "n lat lon"],
    previous: Float[Array, "b n lat lon"] | None = None,
    lead_steps: Sequence[int],
    mode: str = "autoregressive",
) -> Iterator[tuple[int, Float[Array, "b n lat lon"]]]:
    """Yields (steps, prediction) at the ascending `lead_steps`, from the standardized state x with its static fields.

        autoregressive   x[k+1] = apply(params, x[k]) + static            every step is decoded and encoded again
        latent           x[k] = apply(params, x, repeats=k)               one encode and one decode whatever the lead

    A model that sees two frames is given the `previous` state, a step before x, too, and each state before the next.
    Raises ValueError at once, before anything is computed, on an unknown mode and on leads that do not ascend from 1.

    >>> run = weathermixer.open_run("runs/quickstart")
    >>> frames = run.open_frames("dry.archive")
    >>> with jax.set_mesh(run.mesh):
    ...     options = dict(static=frames.standardization.static, lead_steps=[1, 4])
    ...     states = weathermixer.rollout(run.apply, run.params, frames.read(np.array([0])), **options)
    ...     [(steps, state.shape) for steps, state in states]
    [(1, (1, 4, 16, 32)), (4, (1, 4, 16, 32))]
    """
    lead_steps = [int(steps) for steps in lead_steps]
    if mode not in MODES:
        raise ValueError(f"rollout mode={mode!r} is not known: choose one of {MODES}")
    if not lead_steps or lead_steps[0] < 1 or any(b <= a for a, b in itertools.pairwise(lead_steps)):
        raise ValueError(f"lead_steps={lead_steps} must ascend, from at least 1")
    # jit caches by function: the step is compiled once however often this is called with the same `apply`
    step = jax.jit(apply, static_argnames=("repeats",))
    if mode == "latent":
        return ((steps, step(params, x, repeats=steps, **_seen(previous))) for steps in lead_steps)
    return _autoregressive(step, params, x, static, previous, lead_steps)


def _seen(previous: Array | None) -> dict[str, Array]:
    return {} if previous is None else {"previous": previous}


def _autoregressive(
    step: Apply, params: Any, x: Array, static: Array, previous: Array | None, lead_steps: Sequence[int]
) -> Iterator[tuple[int, Array]]:
    for steps in range(1, lead_steps[-1] + 1):
        prediction = step(params, x, **_seen(previous))
        previous = None if previous is None else x
        x = prediction + static[None]
        if steps in lead_steps:
            yield steps, prediction


def check_leads(lead_hours: Sequence[int], *, step_hours: int) -> None:
    """Raises ValueError for no leads, and for leads that are not positive multiples of the model's step."""
    wrong = [lead for lead in lead_hours if lead <= 0 or lead % step_hours]
    if wrong or not lead_hours:
        raise ValueError(
            f"lead_hours={list(lead_hours)}: {wrong or 'none'} cannot be forecast with a step of {step_hours} h; "
            f"choose positive multiples of {step_hours}"
        )


def batches(count: int, batch_size: int) -> Iterator[tuple[Int[np.ndarray, " b"], Bool[np.ndarray, " b"]]]:
    """Yields positions 0..count-1 in batches of one size, and which are real: the last is filled from the start."""
    for first in range(0, count, batch_size):
        positions = np.arange(first, first + batch_size)
        yield positions % count, positions < count
