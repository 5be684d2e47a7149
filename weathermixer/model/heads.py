"""From decoded fields to the next state: the published blend, or an increment added to the state."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from weathermixer.mesh import spec
from weathermixer.model.elementwise import EPSILON
from weathermixer.model.layers import constant_init, kernel_init, parameter


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def masked_norm(x: Float[Array, "b c lat lon"], counted: tuple[bool, ...]) -> Float[Array, "b c lat lon"]:
    """Normalizes each grid point to mean zero and variance one over the counted channels; others come out zero."""
    return _masked_norm_forward(x, counted)[0]


def _masked_norm_forward(x, counted):
    mask, count = np.array(counted, np.float32)[None, :, None, None], float(sum(counted))
    mean = (x * mask).sum(1, keepdims=True) / count
    variance = jnp.square((x - mean) * mask).sum(1, keepdims=True) / count
    mean, inverse = jax.lax.optimization_barrier((mean, jax.lax.rsqrt(variance + EPSILON)))
    y = (x - mean) * inverse * mask
    return y, (y, inverse)


def _masked_norm_backward(counted, saved, dy):
    mask, count = np.array(counted, np.float32)[None, :, None, None], float(sum(counted))
    y, inverse = saved
    means = (dy * mask).sum(1, keepdims=True) / count, (dy * y).sum(1, keepdims=True) / count
    offset, slope = jax.lax.optimization_barrier(means)
    return (inverse * (dy - offset - y * slope) * mask,)


masked_norm.defvjp(_masked_norm_forward, _masked_norm_backward)


class Blend(nnx.Module):
    """The published head: each grid point's next state from what was decoded and the state itself (Jigsaw, section 4).

        y = kernel^T LN(concat(LN(decoded), x)) + bias      over the predicted channels of one grid point

    Parameters, with c the padded channel dimension (rows of padding and static fields meet zeros and change nothing):
    inner_scale, inner_bias [c] of the LayerNorm of `decoded`; outer_scale, outer_bias [2, c] of the LayerNorm of the
    concatenation; kernel [2, c, c] (contracted, produced); bias [c]. Index 0 of the leading 2 is LN(decoded), 1 is x.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        vector, stacked = ("channel_vector",), ("stack", "channel_vector")
        self.inner_scale = parameter(constant_init(1.0), rngs, vector, (channels,))
        self.inner_bias = parameter(constant_init(0.0), rngs, vector, (channels,))
        self.outer_scale = parameter(constant_init(1.0), rngs, stacked, (2, channels))
        self.outer_bias = parameter(constant_init(0.0), rngs, stacked, (2, channels))
        names = ("stack", "channel_in", "channel_out")
        self.kernel = parameter(kernel_init(2 * channels), rngs, names, (2, channels, channels))
        self.bias = parameter(constant_init(0.0), rngs, vector, (channels,))

    def __call__(
        self, decoded: Float[Array, "b c lat lon"], x: Float[Array, "b c lat lon"], predicted: Bool[np.ndarray, " c"]
    ) -> Float[Array, "b c lat lon"]:
        def grid(vector):
            return vector[None, :, None, None]

        def product(vectors, kernel, *, subscripts="bclw,co->bolw", names=("batch", "channel", "lat", "lon")):
            return jnp.einsum(subscripts, vectors, kernel, out_sharding=spec(*names))

        mask = predicted.astype(np.float32)
        kernel = self.kernel[...] * mask[None, :, None]
        inner = masked_norm(decoded, tuple(predicted.tolist()))
        scale, bias = self.inner_scale[...] * mask, self.inner_bias[...] * mask
        # the outer norm's statistics, of LN(decoded) and x together, in one pass over both
        first, second, count = inner * grid(scale) + grid(bias), x * grid(mask), 2 * float(mask.sum())
        mean = (first + second).sum(1, keepdims=True) / count
        square = (jnp.square(first) + jnp.square(second)).sum(1, keepdims=True) / count
        inverse = jax.lax.rsqrt(square - jnp.square(mean) + EPSILON)
        # the outer norm is affine for each grid point, so it is applied to the products: the normalized
        # concatenation itself, twice the size of the state, is never written
        outer = self.outer_scale[...][:, :, None] * kernel
        y = product(inner, scale[:, None] * outer[0]) + product(x, outer[1])

        def vector(values, kernel):
            return product(values, kernel, subscripts="c,co->o", names=("channel_vector",))

        ones = jnp.ones_like(bias)
        y = y + grid(vector(bias, outer[0])) - mean * grid(vector(ones, outer[0] + outer[1]))
        shift = vector(self.outer_bias[0], kernel[0]) + vector(self.outer_bias[1], kernel[1]) + self.bias[...]
        return (y * inverse + grid(shift)) * grid(mask)


class Increment(nnx.Module):
    """The state plus a decoded increment, in units of each channel's 6 h tendency; it has no parameters.

        y = x + tendency * decoded      on predicted channels, zero elsewhere

    `tendency` is the standard deviation of the standardized 6 h change, so that one unit of `decoded` is a typical step
    of any channel, and zero is persistence.
    """

    def __init__(self, tendency: Sequence[float]):
        self.tendency = tuple(float(value) for value in tendency)

    def __call__(
        self, decoded: Float[Array, "b c lat lon"], x: Float[Array, "b c lat lon"], predicted: Bool[np.ndarray, " c"]
    ) -> Float[Array, "b c lat lon"]:
        mask = predicted.astype(np.float32)[None, :, None, None]
        tendency = np.asarray(self.tendency, np.float32)[None, :, None, None]
        return (x + tendency * decoded) * mask
