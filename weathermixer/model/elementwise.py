"""GELU and normalization with backward passes that read and write as little as they can.

Between the products a step is bound by memory. Differentiated as they stand, these functions keep float32 intermediates
of the size of the activation; here the backward pass starts from the input alone, in its own dtype. The barriers keep
the compiler from finding the forward pass's intermediates again and storing them.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

EPSILON = 1e-5  # of every LayerNorm (Jigsaw's published settings)


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU, x Phi(x) with the normal distribution Phi, to 5e-7 in float32."""
    wide = x.astype(jnp.float32)
    return (wide * _normal(wide)[0]).astype(x.dtype)


def _gelu_forward(x):
    return gelu(x), x


def _gelu_backward(x, dy):
    x, dy = lax.optimization_barrier((x, dy))
    wide = x.astype(jnp.float32)
    distribution, density = _normal(wide)
    return (((distribution + wide * density) * dy.astype(jnp.float32)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def _normal(x):
    """The standard normal distribution and density, sharing one exponential (Abramowitz and Stegun, 7.1.26).

    1 / a as rsqrt(a)^2 is one instruction on a GPU, where a division is about ten.
    """
    exponential = jnp.exp(-0.5 * x * x)
    t = jnp.square(lax.rsqrt(1 + np.float32(0.3275911 / np.sqrt(2)) * jnp.abs(x)))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 0.5 * series * exponential
    return jnp.where(x > 0, 1 - tail, tail), np.float32(1 / np.sqrt(2 * np.pi)) * exponential


@jax.custom_vjp
def layer_norm(
    x: Float[Array, "b t d"], scale: Float[Array, "1 1 d"], bias: Float[Array, "1 1 d"]
) -> Float[Array, "b t d"]:
    """y = (x - mean) / sqrt(var + 1e-5) * scale + bias over the last dimension, cut or not; statistics in float32."""
    return _layer_norm_forward(x, scale, bias)[0]


def _layer_norm_forward(x, scale, bias):
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    variance = jnp.maximum(jnp.square(wide).mean(-1, keepdims=True) - jnp.square(mean), 0)
    mean, inverse = lax.optimization_barrier((mean, lax.rsqrt(variance + EPSILON)))
    return ((wide - mean) * inverse * scale + bias).astype(x.dtype), (x, mean, inverse, scale)


def _layer_norm_backward(saved, dy):
    x, mean, inverse, scale = saved
    x, dy = lax.optimization_barrier((x, dy))
    dy, unit = dy.astype(jnp.float32), (x.astype(jnp.float32) - mean) * inverse
    scaled = dy * scale
    means = scaled.mean(-1, keepdims=True), (scaled * unit).mean(-1, keepdims=True)
    offset, slope = lax.optimization_barrier(means)
    dx = inverse * (scaled - offset - unit * slope)
    return dx.astype(x.dtype), (dy * unit).sum((0, 1), keepdims=True), dy.sum((0, 1), keepdims=True)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)
