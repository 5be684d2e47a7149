"""Forecasts of many steps as generators over lead times: a state is dropped as soon as the next one exists.

Everything runs on the mesh in use; predictions come out as global arrays cut like the input.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from weathermixer.archive.frames import Frames
from weathermixer.archive.sampling import find_times
from weathermixer.archive.standardization import Standardization, find_missing
from weathermixer.parallel.mesh import spec

logger = logging.getLogger(__name__)
MODES = ("autoregressive", "latent")
PRESCRIBED = ("analysis", "hold")  # where input-only channels come from on the way, see make_advance
# apply(params, x, *, repeats=1, key=None) -> standardized prediction, zeros on static and padding channels
Apply = Callable[..., Float[Array, "b n lat lon"]]
# (indices of the starts among the frames' times, the states there) -> at each lead the standardized predictions, of a
# single forecast [b n lat lon] or of an ensemble's members [number b n lat lon]
Forecaster = Callable[[Int[np.ndarray, " b"], Array], Iterator[Float[Array, "*number b n lat lon"]]]


def rollout(
    apply: Apply,
    params: Any,
    x: Float[Array, "b n lat lon"],
    *,
    advance: Callable[[Array, int], Array],
    previous: Float[Array, "b n lat lon"] | None = None,
    lead_steps: Sequence[int],
    mode: str = "autoregressive",
    leads: Sequence[int] = (1,),
    noise: Callable[[int], Float[Array, "b k"]] | None = None,
) -> Iterator[tuple[int, Float[Array, "b n lat lon"]]]:
    """Yields (steps, prediction) at the ascending `lead_steps`, from the model's input x.

        autoregressive   x[k+1] = advance(apply(params, x[k]), k + 1)     every step is decoded and encoded again
        latent           x[k] = apply(params, x, repeats=k)               one encode and one decode whatever the lead

    `advance` makes the input of the prediction of so many steps (make_advance). A model that sees two frames is given
    the `previous` input, a step before x, too, and each input before the next. One that was trained for several `leads`
    comes to a step by the longest of them from the step so far before, and only by steps that are needed. `noise` is
    that of the prediction of so many steps. Raises ValueError at once, before anything is computed, on an unknown mode,
    on lead_steps that do not ascend from 1 or that leads do not reach, and on the latent mode with leads or noise.

    >>> from weathermixer.forecasting.rollout import make_advance
    >>> run, starts = weathermixer.open_run("runs/quickstart"), np.array([0])
    >>> frames = run.open_frames("dry.archive")
    >>> with jax.set_mesh(run.mesh):
    ...     state = frames.read(starts)
    ...     options = dict(advance=make_advance(frames, state, starts, prescribed="hold"), lead_steps=[1, 4])
    ...     x = frames.make_input(state, frames.times[starts])
    ...     [(steps, y.shape) for steps, y in weathermixer.rollout(run.apply, run.params, x, **options)]
    [(1, (1, 4, 16, 32)), (4, (1, 4, 16, 32))]
    """
    lead_steps = [int(steps) for steps in lead_steps]
    if mode not in MODES:
        raise ValueError(f"rollout mode={mode!r} is not known: choose one of {MODES}")
    if not lead_steps or lead_steps[0] < 1 or lead_steps != sorted(set(lead_steps)):
        raise ValueError(f"lead_steps={lead_steps} must ascend, from at least 1")
    if unreached := [steps for steps in lead_steps if steps % leads[0]]:
        raise ValueError(f"lead_steps={unreached} cannot be forecast with leads of {tuple(leads)} steps")
    if mode == "latent" and (noise or tuple(leads) != (1,)):
        raise ValueError("rollout mode='latent' is for models without leads or noise: choose 'autoregressive'")
    # jit caches by function: the step is compiled once however often this is called with the same `apply`
    step = jax.jit(apply, static_argnames=("repeats",))
    if mode == "latent":
        seen = {} if previous is None else {"previous": previous}
        return ((steps, step(params, x, repeats=steps, **seen)) for steps in lead_steps)
    inputs = {0: x, -1: previous}
    uses = _uses(lead_steps, leads, history=previous is not None)

    def go_on():
        for steps in sorted(uses):
            number, needed = uses.pop(steps)
            options = {"previous": inputs[needed[1]]} if len(needed) == 2 else {}
            if len(leads) > 1:
                options["lead"] = jnp.full(len(inputs[needed[0]]), number, jnp.int32, out_sharding=spec("batch"))
            if noise:
                options["noise"] = noise(steps)
            prediction = step(params, inputs[needed[0]], **options)
            if steps in lead_steps:
                yield steps, prediction
            later = set().union(*(needed for _, needed in uses.values()))
            for at in inputs.keys() - later:
                del inputs[at]
            if steps in later:
                inputs[steps] = advance(prediction, steps)

    return go_on()


def _uses(lead_steps: Sequence[int], leads: Sequence[int], *, history: bool) -> dict[int, tuple[int, tuple[int, ...]]]:
    """Of every step that is passed the number of its lead, and the steps of the states that it is made of."""
    uses, wanted = {}, list(lead_steps)
    while wanted:
        steps = wanted.pop()
        if steps > 0 and steps not in uses:
            number = max(number for number, lead in enumerate(leads) if lead <= steps)
            since = steps - leads[number]
            uses[steps] = number, (since, since - 1) if history else (since,)
            wanted += uses[steps][1]
    return uses


def model_forecaster(
    apply: Apply,
    params: Any,
    frames: Frames,
    *,
    lead_hours: Sequence[int],
    mode: str = "autoregressive",
    history: int = 1,
    prescribed: str = "analysis",
    leads: Sequence[int] = (1,),
) -> Forecaster:
    """A model's forecasts from the frames of a data set; the forecaster takes members' `noise` too (see rollout).

    `history` is how many frames the model sees: with 2, starts need the time a step before them. `prescribed` says
    where input-only channels come from on the way (make_advance), `leads` which steps it may take at once (rollout).
    Raises ValueError for a lead that is not a positive multiple of the shortest of these.

    >>> run, starts = weathermixer.open_run("runs/quickstart"), np.array([0, 8])
    >>> frames = run.open_frames("dry.archive")
    >>> model = weathermixer.model_forecaster(run.apply, run.params, frames, lead_hours=[6, 12])
    >>> with jax.set_mesh(run.mesh):
    ...     [prediction.shape for prediction in model(starts, frames.read(starts))]
    [(2, 4, 16, 32), (2, 4, 16, 32)]
    """
    step_hours = frames.reference.step_hours
    check_leads(lead_hours, step_hours=step_hours * leads[0])
    lead_steps = [lead // step_hours for lead in lead_hours]

    def forecast(starts, state, noise=None):
        previous = frames.read_previous(starts) if history == 2 else None
        options = dict(previous=previous, lead_steps=lead_steps, mode=mode, leads=leads, noise=noise)
        options["advance"] = make_advance(frames, state, starts, prescribed=prescribed)
        for _, prediction in rollout(apply, params, frames.make_input(state, frames.times[starts]), **options):
            yield prediction

    return forecast


def make_advance(
    frames: Frames, state: Float[Array, "b n lat lon"], starts: Int[np.ndarray, " b"], *, prescribed: str
) -> Callable[[Array, int], Array]:
    """What turns predictions into the next input, for forecasts from the `state` at the data set's times `starts`.

    Static fields are put back and forcings are those of the valid time. Input-only channels are as analysed then, or
    at the last time before that there is ("analysis"), or stay as at the start ("hold"). What the start lacks is
    lacking at every lead.
    """
    reference = frames.reference
    channels, step = reference.channel_set, np.timedelta64(reference.step_hours, "h")

    def advance(prediction: Array, steps: int) -> Array:
        valid = frames.times[starts] + steps * step
        given = None
        if channels.input_only:
            given = state if prescribed == "hold" else frames.read(np.searchsorted(frames.times, valid, "right") - 1)
        # the first channels of `given` are predicted, the next ones are not
        parts = len(channels.dynamic), len(channels.stored)
        return frames.make_input(_next_state(prediction, state, given, frames.standardization, parts), valid)

    return advance


@functools.partial(jax.jit, static_argnames="parts")
def _next_state(prediction, state, given, standardization, parts):
    x = withhold(prediction, state, standardization)
    if given is None:
        return x
    channel = np.arange(x.shape[1])
    return jnp.where(((channel >= parts[0]) & (channel < parts[1]))[None, :, None, None], given, x)


def tell_what_is_held(frames: Frames, starts: Int[np.ndarray, " start"], *, last_step: int, prescribed: str) -> None:
    """Logs a line where input-only channels cannot be as analysed on the way, for the data set lacks the times."""
    names = [channel.name for channel in frames.reference.channel_set.input_only]
    if not names or prescribed == "hold":
        return
    steps = np.arange(1, last_step) * np.timedelta64(frames.reference.step_hours, "h")
    passed = np.unique(frames.times[starts][:, None] + steps)
    absent = passed[find_times(frames.times, passed) < 0]
    if len(absent):
        logger.warning(
            "%s lacks %d of the %d times that forecasts pass, the first %s: %s stay there as at the last time before",
            frames.name, len(absent), len(passed), f"{absent[0]:.13}", ", ".join(names),
        )  # fmt: skip


def withhold(
    prediction: Float[Array, "b n lat lon"], state: Float[Array, "b n lat lon"], standardization: Standardization
) -> Float[Array, "b n lat lon"]:
    """The prediction without what the state that it started from lacks: NaN in its place."""
    missing = find_missing(state, standardization)
    return prediction if missing is None else jnp.where(missing, jnp.nan, prediction)


def check_leads(lead_hours: Sequence[int], *, step_hours: int, name: str = "lead_hours") -> None:
    """Raises ValueError, by their name, for no leads, and for those that are not positive multiples of the step."""
    wrong = [lead for lead in lead_hours if lead <= 0 or lead % step_hours]
    if wrong or not lead_hours:
        raise ValueError(
            f"{name}={list(lead_hours)}: {wrong or 'none'} cannot be forecast with a step of {step_hours} h; "
            f"choose positive multiples of {step_hours}"
        )


def batches(count: int, batch_size: int) -> Iterator[tuple[Int[np.ndarray, " b"], Bool[np.ndarray, " b"]]]:
    """Yields positions 0..count-1 in batches of one size, and which are real: the last is filled from the start."""
    for first in range(0, count, batch_size):
        positions = np.arange(first, first + batch_size)
        yield positions % count, positions < count
