"""One training step, and the loss on data that is not trained on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from weathermixer.archive.inputs import find_missing, make_input, show, surround
from weathermixer.archive.loader import Batch
from weathermixer.archive.standardization import Standardization, standardize
from weathermixer.parallel.zero import cut_instances, gather_instances
from weathermixer.training.augment import AUGMENTATIONS, rotate_longitude
from weathermixer.training.losses import weighted_mse
from weathermixer.training.state import TrainState

Apply = Callable[..., Float[Array, "b c lat lon"]]


def make_loss(
    apply: Apply,
    *,
    area: Float[np.ndarray, " lat"],
    channel: Float[np.ndarray, " c"],
    repeats: int,
    augmentation: str = "none",
    rollout_weights: Sequence[float] = (1.0,),
    cut_gradient: bool = False,
    input_only: tuple[int, int] = (0, 0),
) -> Callable[..., Float[Array, ""]]:
    """The loss(params, batch, standardization, key) of a forecast `repeats` steps ahead (weathermixer.training.losses).

    With several `rollout_weights` w the forecast is fed back, and the loss is that of all of its leads:

        L = sum_k w[k] L(y[k], target[k]) / sum_k w[k]        y[k] = apply(params, x[k]),  x[k + 1] from y[k]

    Each step is rematerialized in the backward pass, so that a step more costs the memory of one state.

    Args:
      augmentation: one of augment.py's; without a key, as on data that is not trained on, nothing is turned.
      cut_gradient: each step learns from its own lead alone: what is fed back counts as given.
      input_only: (first, past the last) of the input-only channels, which are the targets' own on the way.

    Raises ValueError for an unknown augmentation.

    >>> frames = weathermixer.open_run("runs/quickstart").open_frames("dry.archive")
    >>> weights = dict(area=weathermixer.area_weights(frames.reference.grid.latitude), channel=np.ones(4))
    >>> persistence = lambda params, x, *, repeats, key: params * x
    >>> loss = weathermixer.make_loss(persistence, **weights, repeats=1)
    >>> batch = weathermixer.Batch(frames.read_stored(np.arange(2)), frames.read_stored(np.arange(2) + 1))
    >>> with jax.set_mesh(frames.mesh):
    ...     0 < jax.jit(loss)(1.0, batch, frames.standardization, None) < 1
    Array(True, dtype=bool)
    """
    if augmentation not in AUGMENTATIONS:
        raise ValueError(f"augmentation={augmentation!r} is not one of {AUGMENTATIONS}")

    def loss(params: Any, batch: Batch, s: Standardization, key: Array | None) -> Float[Array, ""]:
        seen = [(batch.inputs, batch.terms)]
        if batch.previous is not None:
            seen.append((batch.previous, batch.previous_terms))
        x, *previous = (make_input(standardize(frames, s), s, terms) for frames, terms in seen)
        targets = [standardize(frames, s) for frames in (batch.targets, *batch.later)]
        around = [jnp.zeros_like(x) + surround(s, terms) for terms in batch.later_terms]
        if augmentation == "rotate_longitude" and key is not None:
            key, turn = jax.random.split(key)
            fields, tree = jax.tree.flatten((x, previous, targets, around))
            x, previous, targets, around = jax.tree.unflatten(tree, rotate_longitude(tuple(fields), turn))
        history = {"previous": previous[0]} if previous else {}
        losses = []
        for number, target in enumerate(targets):
            prediction = step(params, x, key, history)
            missing = find_missing(target, s)
            losses.append(weighted_mse(prediction, target, area=area, channel=channel, missing=missing))
            if number < len(around):
                state = jax.lax.stop_gradient(prediction) if cut_gradient else prediction
                history = {"previous": x} if history else {}
                x = show(_merge(state, target, missing, input_only), s) + around[number]
                key = None if key is None else jax.random.fold_in(key, number)
        if len(losses) == 1:
            return losses[0]
        return sum(w * value for w, value in zip(rollout_weights, losses, strict=True)) / sum(rollout_weights)

    def step(params, x, key, history):
        return apply(params, x, repeats=repeats, key=key, **history)

    if len(rollout_weights) > 1:
        step = jax.checkpoint(step)
    return loss


def _merge(prediction, target, missing, input_only):
    """The state that follows a prediction: prescribed channels are the target's, and what that lacks is lacking."""
    if input_only[0] < input_only[1]:
        channel = np.arange(prediction.shape[1])
        given = (channel >= input_only[0]) & (channel < input_only[1])
        prediction = jnp.where(given[None, :, None, None], target, prediction)
    return prediction if missing is None else jnp.where(missing, jnp.nan, prediction)


def make_train_step(
    loss: Callable[..., Float[Array, ""]],
    optimizer: optax.GradientTransformation,
    *,
    learning_rate: optax.Schedule,
    ema_decay: float | None,
    seed: int | None,
    zero: str = "none",
    accumulate: int = 1,
    compiler_options: Mapping[str, Any] | None = None,
) -> Callable[[TrainState, Batch, Standardization], tuple[TrainState, dict[str, Array]]]:
    """The jitted train_step(state, batch, standardization) -> (state, metrics); the state it is given is donated.

    Args:
      loss: of make_loss.
      learning_rate: reported beside the loss and the gradient's norm.
      ema_decay: of the parameters' moving average, ema = decay * ema + (1 - decay) * params; None where none is kept.
      seed: of dropout and augmentation, which are drawn anew from (seed, step); None for neither.
      zero: as the state was made with: where it is not "none" each instance updates its part alone.
      accumulate: in so many parts the batch goes through the model, one after the other; their mean is the gradient.
      compiler_options: given to XLA, as for jax.jit.

    >>> import optax
    >>> run, optimizer = weathermixer.open_run("runs/quickstart"), optax.adam(1e-4)
    >>> frames, state = run.open_frames("dry.archive"), weathermixer.make_state(run.params, optimizer, ema=False)
    >>> loss = weathermixer.make_loss(run.apply, area=np.ones(16), channel=np.ones(4), repeats=1)
    >>> options = dict(learning_rate=lambda step: 1e-4, ema_decay=None, seed=None)
    >>> train_step = weathermixer.make_train_step(loss, optimizer, **options)
    >>> batch = weathermixer.Batch(frames.read_stored(np.arange(2)), frames.read_stored(np.arange(2) + 1))
    >>> with jax.set_mesh(run.mesh):
    ...     state, metrics = train_step(state, batch, frames.standardization)
    >>> int(state.step), sorted(metrics)
    (1, ['grad_norm', 'learning_rate', 'loss'])
    """

    def mean_gradient(params: Any, batch: Batch, standardization: Standardization, key: Array | None):
        if accumulate == 1:
            return jax.value_and_grad(loss)(params, batch, standardization, key)

        def add(sums, number):
            # every part is spread over all instances: [sample, ...] -> [sample of the part, part, ...]
            part = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:])[:, number], batch)
            own = None if key is None else jax.random.fold_in(key, number)
            return jax.tree.map(jnp.add, sums, jax.value_and_grad(loss)(params, part, standardization, own)), None

        nothing = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
        sums, _ = jax.lax.scan(add, nothing, jnp.arange(accumulate))
        return jax.tree.map(lambda total: total / accumulate, sums)

    def train_step(state: TrainState, batch: Batch, standardization: Standardization):
        key = None if seed is None else jax.random.fold_in(jax.random.key(seed), state.step)
        value, gradient = mean_gradient(state.params, batch, standardization, key)
        own = state.params
        if zero != "none":
            gradient, own = cut_instances(gradient), cut_instances(own)
        updates, moments = optimizer.update(gradient, state.moments, own)
        params = optax.apply_updates(own, updates)
        ema = state.ema
        if ema_decay is not None:
            ema = jax.tree.map(lambda average, new: average + (1 - ema_decay) * (new - average), ema, params)
        metrics = {
            "loss": value,
            "grad_norm": optax.tree.norm(gradient),
            "learning_rate": jnp.asarray(learning_rate(state.step), jnp.float32),
        }
        if zero == "moments":
            params = gather_instances(params)
        return TrainState(state.step + 1, params, moments, ema), metrics

    return jax.jit(train_step, donate_argnums=0, compiler_options=compiler_options)
