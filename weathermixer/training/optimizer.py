"""Adam as published, AdamW or Muon: one global gradient norm, warm-up and cosine, a rate per group of parameters."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers

KINDS = ("adam", "adamw", "muon")
RATES = ("cosine", "constant", "cooldown", "factors")
# encode and decode learn at a rate of their own (Jigsaw's published settings); all else is the processor
CODERS = ("encode", "decode_kernel", "decode_bias")


def make_learning_rate(
    *,
    start: float,
    peak: float,
    end: float,
    warmup_steps: int,
    total_steps: int,
    schedule: str = "cosine",
    factors: Sequence[float] = (),
) -> optax.Schedule:
    """Linear from `start` to `peak` in `warmup_steps`, then a cosine to `end` at `total_steps`, or constant.

        cooldown    peak + (end - peak) sqrt(step / total_steps), without a warm-up   (Haegele et al. 2024, 2405.18392)
        factors     peak * factors, equally spaced from the warm-up's end to `total_steps`, linear between

    Raises ValueError for an unknown schedule, and where the warm-up of a cosine or of factors is not shorter than the
    whole.

    >>> rate = weathermixer.make_learning_rate(start=0.0, peak=1e-3, end=1e-5, warmup_steps=10, total_steps=100)
    >>> [round(float(rate(step)), 6) for step in (0, 5, 10, 100)]
    [0.0, 0.0005, 0.001, 1e-05]
    """
    if schedule not in RATES:
        raise ValueError(f"schedule={schedule!r} is not one of {RATES}")
    if schedule == "cooldown":
        return lambda step: peak + (end - peak) * jnp.sqrt(jnp.minimum(step / total_steps, 1.0))
    if schedule == "constant":
        return optax.linear_schedule(start, peak, max(warmup_steps, 1))
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"warm-up of {warmup_steps} steps does not fit in {total_steps} steps of training")
    warmup = optax.linear_schedule(start, peak, max(warmup_steps, 1))
    after = optax.cosine_decay_schedule(peak, total_steps - warmup_steps, alpha=end / peak)
    if schedule == "factors":
        places = np.linspace(0, total_steps - warmup_steps, len(factors))
        after = lambda step: peak * jnp.interp(step, places, np.asarray(factors))  # noqa: E731
    return optax.join_schedules([warmup, after], [warmup_steps])


def make_optimizer(
    kind: str,
    *,
    processor_rate: optax.Schedule,
    coder_rate: optax.Schedule,
    beta1: float = 0.9,
    beta2: float = 0.999,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
    momentum_dtype: str = "float32",
) -> optax.GradientTransformation:
    """The optimizer of a WeatherMixer's parameters; its moments are cut as the parameters are.

    Args:
      kind: "adam", where `weight_decay` is an L2 term added to the clipped gradient (published), "adamw", where it
        acts on kernels alone, apart from the gradient, or "muon": adamw, but the blocks' kernels' momentum is made
        orthogonal (Jordan 2024), with steps as large as AdamW's (Liu et al. 2025, 2502.16982).
      processor_rate, coder_rate: learning rates of the mixer blocks and the rest, and of encode and decode.
      clip_norm: bound of the norm of the whole gradient, over all parameters and devices; 0: none.
      momentum_dtype: of the first moments as they are kept, "float32" or "bfloat16"; the second are float32: what a
        step adds to them would be lost in rounding.

    Raises ValueError for an unknown kind.

    >>> rates = dict(processor_rate=lambda step: 1e-3, coder_rate=lambda step: 1e-4)
    >>> optimizer = weathermixer.make_optimizer("adamw", **rates, weight_decay=0.01)
    >>> params = {"encode": {"kernel": jnp.ones(2)}, "blocks": {"kernel": jnp.ones(2)}}
    >>> updates, moments = optimizer.update(params, optimizer.init(params), params)
    >>> bool((updates["blocks"]["kernel"] < updates["encode"]["kernel"]).all())  # decode and encode learn slower
    True
    """
    if kind not in KINDS:
        raise ValueError(f"optimizer kind={kind!r} is not one of {KINDS}")
    adam = optax.scale_by_adam(beta1, beta2, mu_dtype=momentum_dtype)
    if kind == "adam":
        steps = [optax.add_decayed_weights(weight_decay), adam]
    else:
        scale = _muon(beta1, beta2, momentum_dtype) if kind == "muon" else adam
        steps = [scale, optax.add_decayed_weights(weight_decay, mask=_named(lambda names, _: "kernel" in names[-1]))]
    if clip_norm:
        steps = [optax.clip_by_global_norm(clip_norm), *steps]
    rates = {
        "coder": optax.scale_by_learning_rate(coder_rate),
        "processor": optax.scale_by_learning_rate(processor_rate),
    }
    group = _named(lambda names, _: "coder" if names[0] in CODERS else "processor")
    return optax.chain(*steps, optax.partition(rates, group))


def _muon(beta1: float, beta2: float, momentum_dtype: str) -> optax.GradientTransformation:
    """optax's Muon on the blocks' kernels and Adam on the rest, as a direction: rates and decay come after.

    The products X X^T of Newton and Schulz contract dimensions that are cut on both sides: the compiler says how.
    """
    options = dict(adam_b1=beta1, adam_b2=beta2, mu_dtype=momentum_dtype, consistent_rms=0.2)
    muon = optax.contrib.muon(-1.0, muon_weight_dimension_numbers=_named(_matrix), **options)

    def update(gradient, moments, params=None):
        cuts = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, (gradient, moments))
        return jax.sharding.auto_axes(muon.update, out_sharding=cuts)(gradient, moments, params)

    return optax.GradientTransformation(muon.init, update)


def _matrix(names: Sequence[str], leaf: Any) -> MuonDimensionNumbers | None:
    """What Muon takes for a matrix: (contracted, produced) of a kernel; the third dimension, offsets, is contracted."""
    if names[0] == "blocks" and names[-1] == "kernel":
        return MuonDimensionNumbers({2: 0, 3: (0, 2)}[leaf.ndim], 1)
    return None


def _named(f: Callable) -> Callable:
    """A function of a tree of parameters that gives f(names on the way to it, parameter) in each one's place."""

    def named(path, leaf):
        return f([str(entry.key) for entry in path if hasattr(entry, "key")], leaf)

    return functools.partial(jax.tree_util.tree_map_with_path, named)
