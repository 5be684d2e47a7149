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
def gelu(x: Float[Array, "b t d"], bias: Float[Array, "#b #t #d"]) -> Float[Array, "b t d"]:
    """The exact GELU of x + bias, z Phi(z) with the normal distribution Phi, to 5e-7 in float32."""
    wide = x.astype(jnp.float32) + bias
    return (wide * _normal(wide)[0]).astype(x.dtype)


def _gelu_forward(x, bias):
    return gelu(x, bias), (x, bias)


def _gelu_backward(saved, dy):
    x, bias = saved
    x, dy = lax.optimization_barrier((x, dy))
    wide = x.astype(jnp.float32) + bias
    distribution, density = _normal(wide)
    dx = lax.optimization_barrier(((distribution + wide * density) * dy.astype(jnp.float32)).astype(x.dtype))
    return dx, _sum_to(bias, dx.astype(jnp.float32))


gelu.defvjp(_gelu_forward, _gelu_backward)


def add_bias(x: Float[Array, "b t d"], bias: Float[Array, "#b #t #d"]) -> Float[Array, "b t d"]:
    """x + bias in float32, so that the bias's gradient is summed in float32, and back to x's dtype."""
    return (x.astype(jnp.float32) + bias).astype(x.dtype)


def _sum_to(bias, gradient):
    """A gradient summed over the dimensions along which the bias was repeated."""
    return gradient.sum([axis for axis, size in enumerate(bias.shape) if size == 1], keepdims=True)


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
    x: Float[Array, "b t d"], scale: Float[Array, "#b 1 d"], bias: Float[Array, "#b 1 d"]
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
    return dx.astype(x.dtype), _sum_to(scale, dy * unit), _sum_to(scale, dy)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)
