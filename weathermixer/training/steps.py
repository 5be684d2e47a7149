"""One training step, and its loss, for other data too: long, as a step and the chain of them close over its options."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import reshard
from jaxtyping import Array, Float, Key

from weathermixer.archive.loader import Batch
from weathermixer.archive.standardization import Standardization, find_missing, make_input, show, standardize, surround
from weathermixer.parallel.mesh import spec
from weathermixer.training.losses import fair_crps, weighted_mse
from weathermixer.training.state import TrainState

Apply = Callable[..., Float[Array, "b c lat lon"]]

AUGMENTATIONS = ("none", "rotate_longitude")


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
    members: int = 1,
    spectral_crps: float = 0.0,
    noise: int = 0,
) -> Callable[..., Float[Array, ""]]:
    """The loss(params, batch, standardization, key) of a forecast `repeats` steps ahead (weathermixer.training.losses).

    With several `rollout_weights` w the forecast is fed back, and the loss is that of all of its leads:

        L = sum_k w[k] L(y[k], target[k]) / sum_k w[k]        y[k] = apply(params, x[k]),  x[k + 1] from y[k]

    Each step is made again in the backward pass, so that a step more costs the memory of one state.

    Args:
      augmentation: one of AUGMENTATIONS; without a key, as on data that is not trained on, nothing is turned.
      cut_gradient: each step learns from its own lead alone: what is fed back counts as given.
      input_only: (first, past the last) of the input-only channels, which are the targets' own on the way.
      members: with 2 or more, forecasts of each sample, with other noise at every step: the loss is their fair CRPS.
      spectral_crps: weight in it of the CRPS of zonal Fourier coefficients.
      noise: numbers of noise that the model takes. It is drawn from the key; without one, always the same.

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
        turning = None
        if augmentation == "rotate_longitude" and key is not None:
            key, turning = jax.random.split(key)

        def place(*fields):
            """Fields as they are forecast: turned, and once for each member."""
            fields = fields if turning is None else rotate_longitude(fields, turning)
            return fields if members == 1 else tuple(map(repeat, fields))

        def step(carry, given):
            (x, *previous), (frames, terms, number, own) = carry, given
            options = {"previous": previous[0]} if previous else {}
            if batch.lead is not None:
                options["lead"] = repeat(batch.lead)
            if noise:
                options["noise"] = draw(own, number, len(x))
            prediction = apply(params, x, repeats=repeats, key=own, **options)
            (target,) = place(standardize(frames, s))
            missing = find_missing(target, s)
            value = score(prediction, target, area=area, channel=channel, missing=missing)
            if not batch.later:
                return carry, value
            state = jax.lax.stop_gradient(prediction) if cut_gradient else prediction
            (around,) = place(jnp.zeros(frames.shape, out_sharding=jax.typeof(frames).sharding) + surround(s, terms))
            return (show(_merge(state, target, missing, input_only), s) + around, *[x] * len(previous)), value

        seen = [(batch.inputs, batch.terms)]
        if batch.previous is not None:
            seen.append((batch.previous, batch.previous_terms))
        first = place(*(make_input(standardize(frames, s), s, terms) for frames, terms in seen))
        if not batch.later:
            return step(first, (batch.targets, None, 0, key))[1]
        keys = [key]
        for number in range(len(batch.later)):
            keys.append(None if key is None else jax.random.fold_in(keys[-1], number))
        terms = (*batch.later_terms, batch.later_terms[-1])  # what follows the last step is not used
        given = zip((batch.targets, *batch.later), terms, range(len(keys)), keys, strict=True)
        given = jax.tree.map(lambda *each: jnp.stack(each), *given)
        # a loop, that each step's gradient is added before the next one's is made
        _, losses = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), first, given)
        weights = np.array(rollout_weights, np.float32)
        return (losses * weights).sum() / weights.sum()

    def repeat(x):
        """[sample, ...] -> [sample * member, ...]: on the devices where the sample is."""
        every = jnp.broadcast_to(x[:, None], (len(x), members, *x.shape[1:]))
        return jnp.reshape(every, (-1, *x.shape[1:]), out_sharding=jax.typeof(x).sharding.spec)

    def draw(key, number, rows):
        own = jax.random.fold_in(jax.random.key(0) if key is None else key, _NOISE + number)
        return jax.random.normal(own, (rows, noise), out_sharding=spec("batch", None))

    crps = functools.partial(fair_crps, members=members, spectral=spectral_crps)
    score = crps if members > 1 else weighted_mse
    return loss


def rotate_longitude(
    fields: tuple[Float[Array, "b c lat lon"], ...], key: Key[Array, ""]
) -> tuple[Float[Array, "b c lat lon"], ...]:
    """Turns each sample about the globe's axis by its own whole number of columns, the same in all `fields`.

        rotated[b, c, i, (j + s_b) % lon] = fields[b, c, i, j]        s_b uniform in 0 .. lon - 1

    Input (with its static fields, so that the land turns along) and target together are a sample of an equally valid
    planet: 64 columns make 64 of each. Longitude is not cut on any mesh, so nothing moves between devices.
    """
    batch, *_, lon = fields[0].shape
    shifts = reshard(jax.random.randint(key, (batch,), 0, lon), spec("batch"))
    roll = jax.vmap(lambda field, shift: jnp.roll(field, shift, axis=-1))
    cut = spec("batch", "channel", "lat", "lon")
    local = jax.shard_map(
        lambda fields, shifts: tuple(roll(field, shifts) for field in fields),
        in_specs=((cut,) * len(fields), spec("batch")),
        out_specs=(cut,) * len(fields),
    )
    return local(tuple(fields), shifts)


# keeps the keys of noise apart from dropout's
_NOISE = 0x5EED


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
    accumulate: int = 1,
    compiler_options: Mapping[str, Any] | None = None,
) -> Callable[[TrainState, Batch, Standardization], tuple[TrainState, dict[str, Array]]]:
    """The jitted train_step(state, batch, standardization) -> (state, metrics); the state it is given is donated.

    Args:
      loss: of make_loss.
      learning_rate: reported beside the loss and the gradient's norm.
      ema_decay: of the parameters' moving average, ema = decay * ema + (1 - decay) * params; None where none is kept.
      seed: of dropout, augmentation, noise and leads, which are drawn anew from (seed, step); None for neither.
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
        with jax.named_scope("optimizer"):
            updates, moments = optimizer.update(gradient, state.moments, state.params)
            params = optax.apply_updates(state.params, updates)
            ema = state.ema
            if ema_decay is not None:
                ema = jax.tree.map(lambda average, new: average + (1 - ema_decay) * (new - average), ema, params)
        metrics = {
            "loss": value,
            "grad_norm": optax.tree.norm(gradient),
            "learning_rate": jnp.asarray(learning_rate(state.step), jnp.float32),
        }
        return TrainState(state.step + 1, params, moments, ema), metrics

    return jax.jit(train_step, donate_argnums=0, compiler_options=compiler_options)
