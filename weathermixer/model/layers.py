"""Layers on cut arrays: parameters born sharded, dense layers, LayerNorm, dropout."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import ones, zeros
from jax.sharding import reshard
from jaxtyping import Array, Float, Key

from weathermixer.model.elementwise import add_bias, layer_norm
from weathermixer.parallel.jigsaw import ACTIVATION, mix
from weathermixer.parallel.mesh import spec, ways
from weathermixer.parallel.schedule import Over, Schedule, choose_schedule, kernel_names
from weathermixer.parallel.zero import gather_instances


def parameter(init: Callable, rngs: nnx.Rngs, names: tuple[str, ...], shape: tuple[int, ...]) -> nnx.Param:
    """A float32 parameter whose dimensions carry these logical names, initialized on its own shards.

    The sharding goes to the initializer itself: placed after the fact, every device would first hold the whole kernel.
    """
    return nnx.Param(init(rngs.params(), shape, jnp.float32, out_sharding=spec(*names)), names=names)


def kernel_init(fan_in: int) -> Callable:
    """Uniform in +-1/sqrt(fan_in), the initialization of the published model's linear layers."""
    bound = 1 / math.sqrt(fan_in)
    return functools.partial(jax.random.uniform, minval=-bound, maxval=bound)


class Dense(nnx.Module):
    """An affine map of the channels, or of the tokens, of an activation.

        over="channel":  y[b,t,o] = sum_i x[b,t,i] kernel[i,o] + bias[o]
        over="token":    y[b,o,d] = sum_i x[b,i,d] kernel[i,o] + bias[o]

    With `columns`, tokens of a row, it is circulant along longitude, the same wherever that begins:

        y[b, (r, j), d] = sum_{s, l} x[b, (s, l), d] kernel[s, r, (j - l) mod columns] + bias[r]

    Tokens are (row, column), so `inputs` and `outputs` are whole numbers of rows. A band of rows of the kernel is made
    dense where it lies, and contracted as any other: products and what travels are the same.

    Parameters: kernel [inputs, outputs], bias [outputs] (the transpose of a PyTorch Linear's weight, and its bias);
    with columns [rows of inputs, rows of outputs, offset] and [rows of outputs]. How the kernel is cut follows from its
    schedule, what it computes does not.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        over: Over,
        schedule: Schedule,
        rngs: nnx.Rngs,
        fp8: bool = False,
        columns: int = 1,
    ):
        self.over, self.fp8, self.columns = over, fp8, columns
        self.schedule = resolve_schedule(schedule, inputs, outputs, over)
        names, shape = kernel_names(over, self.schedule), (inputs // columns, outputs // columns)
        names, shape = (names, shape) if columns == 1 else ((*names, "stack"), (*shape, columns))
        self.kernel = parameter(kernel_init(inputs), rngs, names, shape)
        self.bias = parameter(zeros, rngs, ("token_vector" if over == "token" else "embed_vector",), shape[1:2])

    def __call__(self, x: Float[Array, "b t d"], *, finish: Callable = add_bias) -> Float[Array, "b t2 d2"]:
        """finish(x kernel, bias): an activation function that adds the bias itself saves writing the sum."""
        kernel, bias, columns = self.kernel[...], self.bias[...], self.columns
        if columns > 1:  # [s, l, r, j]: from a column l the offsets are turned by l
            kernel, bias = gather_instances((kernel, bias))
            size, names = [columns * rows for rows in kernel.shape[:2]], kernel_names("token", self.schedule)
            kernel = kernel.astype(x.dtype)
            turned = jnp.stack([jnp.roll(kernel, column, axis=-1) for column in range(columns)], axis=1)
            kernel = jnp.reshape(turned, size, out_sharding=spec(*names))
            bias = jnp.broadcast_to(bias[:, None], (len(bias), columns)).reshape(-1)
        y = mix(x, kernel, over=self.over, schedule=self.schedule, fp8=self.fp8)
        return finish(y, dense_bias(bias, self.over))


def resolve_schedule(schedule: Schedule, inputs: int, outputs: int, over: Over) -> Schedule:
    """The schedule of one contraction on the current mesh: the one asked for, or for "auto" the cheapest."""
    along = ways(jax.sharding.get_abstract_mesh(), "token" if over == "token" else "embed")
    return choose_schedule(schedule, inputs, outputs, along=along)


def dense_bias(bias: Float[Array, " o"], over: Over) -> Float[Array, "..."]:
    """A bias on the dimension that a mixing produced, cut and shaped to be added to the activation."""
    if over == "token":
        return reshard(bias, spec("token"))[None, :, None]
    return reshard(bias, spec("embed"))[None, None, :]


class LayerNorm(nnx.Module):
    """LayerNorm over the whole embedding, whatever its cut, with scale and bias; statistics in float32.

        y = (x - mean) / sqrt(var + 1e-5) * scale + bias

    With `conditions`, numbers that each sample is given, scale and bias are those times 1 + a, and those plus b, where
    a, b = condition kernel: zero, and at birth any, condition changes nothing.

    Parameters: scale [embed], bias [embed]; condition_kernel [2, conditions, embed] where there are conditions.
    """

    def __init__(self, embed: int, *, conditions: int = 0, rngs: nnx.Rngs):
        if conditions:
            names, shape = ("stack", "stack", "embed_vector"), (2, conditions, embed)
            self.condition_kernel = parameter(zeros, rngs, names, shape)
        self.scale = parameter(ones, rngs, ("embed_vector",), (embed,))
        self.bias = parameter(zeros, rngs, ("embed_vector",), (embed,))

    def __call__(self, x: Float[Array, "b t d"], condition: Float[Array, "b n"] | None = None) -> Float[Array, "b t d"]:
        scale, bias = (reshard(p[...], spec("embed"))[None, None, :] for p in (self.scale, self.bias))
        if condition is not None:
            kernel = reshard(self.condition_kernel[...], spec(None, None, "embed"))
            a, b = jnp.einsum("bn,knd->kbd", condition, kernel, out_sharding=spec(None, "batch", "embed"))[
                :, :, None, :
            ]
            scale, bias = scale * (1 + a), bias + b
        return layer_norm(x, scale, bias)


def dropout(x: Float[Array, "b t d"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "b t d"]:
    """Inverted dropout of an activation, drawn over its logical shape, so that every mesh drops the same elements."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape, out_sharding=spec(*ACTIVATION))
    return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))


def fold_key(key: Any, number: int) -> Any:
    """The key of part `number`, or None where nothing is random."""
    return None if key is None else jax.random.fold_in(key, np.uint32(number))
