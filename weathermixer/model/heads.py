"""From decoded fields to the next state: the published blend, or an increment added to the state."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.nn.initializers import ones, zeros
from jax.sharding import PartitionSpec, reshard
from jaxtyping import Array, Bool, Float

from weathermixer.model.elementwise import EPSILON
from weathermixer.model.layers import kernel_init, parameter
from weathermixer.parallel.mesh import LOGICAL_AXES, spec, without


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def blend(
    decoded: Float[Array, "b c lat lon"],
    x: Float[Array, "b c lat lon"],
    weights: dict[str, Float[Array, "..."]],
    counted: tuple[bool, ...],
) -> Float[Array, "b c lat lon"]:
    """Each grid point's next state, from its channels of `decoded` and of the state `x`; both norms are in here.

        n = (decoded - mean(decoded)) / deviation(decoded)                            to decoded's dtype
        M, 1/R = mean, deviation of the concatenation of scale * n + bias and x       over the counted channels
        y = R * (first^T n + second^T x + constant - M * total) + shift               in float32

    The outer norm is affine for each grid point, so it is applied to the products: the normalized concatenation itself,
    twice the size of the state, is never written. All of this is bound by memory: the backward pass starts from n and
    y, and what it writes at full size it writes in decoded's dtype. The barriers keep the compiler from storing float32
    in place of these.

    Args:
      weights: first, second [c, c] (contracted, produced); scale, bias, constant, total, shift [c]. All are zero for
        channels that are not counted, and so is y.
    """
    return _blend_forward(decoded, x, weights, counted)[0]


def _blend_forward(decoded, x, weights, counted):
    mask, count = _on_grid(np.array(counted, np.float32)), float(sum(counted))
    decoded = lax.optimization_barrier(decoded)
    wide = decoded.astype(jnp.float32) * mask
    mean = wide.sum(1, keepdims=True) / count
    variance = jnp.maximum(jnp.square(wide).sum(1, keepdims=True) / count - jnp.square(mean), 0)
    mean, inverse = lax.optimization_barrier((mean, lax.rsqrt(variance + EPSILON)))
    normal = lax.optimization_barrier(((wide - mean) * inverse * mask).astype(decoded.dtype))
    scaled, state = normal * _on_grid(weights["scale"]) + _on_grid(weights["bias"]), x * mask
    outer_mean = (scaled + state).sum(1, keepdims=True) / (2 * count)
    square = (jnp.square(scaled) + jnp.square(state)).sum(1, keepdims=True) / (2 * count)
    variance = jnp.maximum(square - jnp.square(outer_mean), 0)
    outer_mean, outer_inverse = lax.optimization_barrier((outer_mean, lax.rsqrt(variance + EPSILON)))
    cut = jax.typeof(x).sharding.spec
    y = _product("co,bclw->bolw", weights["first"].astype(normal.dtype), normal, cut)
    y += _product("co,bclw->bolw", weights["second"].astype(x.dtype), x, cut)
    y += _on_grid(weights["constant"]) - outer_mean * _on_grid(weights["total"])
    y = lax.optimization_barrier((y * outer_inverse + _on_grid(weights["shift"])) * mask)
    return y, (normal, inverse, x, outer_mean, outer_inverse, y, weights)


def _blend_backward(counted, saved, dy):
    mask, count = _on_grid(np.array(counted, np.float32)), float(sum(counted))
    normal, inverse, x, outer_mean, outer_inverse, y, weights = saved
    # through the outer norm: the gradients of its mean and of its variance, each shared by 2 * count values
    dmean = -outer_inverse * (dy * _on_grid(weights["total"])).sum(1, keepdims=True)
    dvariance = -0.5 * jnp.square(outer_inverse) * (dy * (y - _on_grid(weights["shift"]))).sum(1, keepdims=True)
    slope, dz = lax.optimization_barrier((dvariance / count, (dy * outer_inverse).astype(normal.dtype)))
    level = (dmean / 2 - dvariance * outer_mean) / count
    # through the products; what corrects a kernel by the state does not need the state in float32
    cut, kernel_cut = (jax.typeof(array).sharding.spec for array in (x, weights["first"]))
    # gathered once: each of the four products would gather it by itself
    whole = lax.optimization_barrier(reshard(dz, without(cut, LOGICAL_AXES["channel"])))
    through = {
        name: _product("co,bolw->bclw", weights[name].astype(dz.dtype), whole, cut).astype(dz.dtype)
        for name in ("first", "second")
    }
    dkernel = {
        name: _kernel_gradient(factor.astype(dz.dtype), whole, kernel_cut)
        for name, factor in (("first", normal), ("second", x))
    }
    # through the inner norm
    first = lax.optimization_barrier(through["first"]).astype(jnp.float32)
    wide, scale = normal.astype(jnp.float32), _on_grid(weights["scale"])
    dscaled = (level + slope * (wide * scale + _on_grid(weights["bias"]))) * mask
    dnormal = first + dscaled * scale
    means = dnormal.sum(1, keepdims=True) / count, (dnormal * wide).sum(1, keepdims=True) / count
    offset, along = lax.optimization_barrier(means)
    ddecoded = (inverse * (dnormal - offset - wide * along) * mask).astype(normal.dtype)
    dx = through["second"].astype(x.dtype) + (level + slope * x) * mask
    wide_dz = dz.astype(jnp.float32)
    dweights = dict(
        dkernel,
        scale=(dscaled * wide).sum((0, 2, 3)),
        bias=dscaled.sum((0, 2, 3)),
        constant=wide_dz.sum((0, 2, 3)),
        total=-(wide_dz * outer_mean).sum((0, 2, 3)),
        shift=(wide_dz / outer_inverse).sum((0, 2, 3)),
    )
    return ddecoded, dx, dweights


blend.defvjp(_blend_forward, _blend_backward)


def _on_grid(vector):
    return vector[None, :, None, None]


def _product(subscripts, kernel, fields, cut):
    # the kernel stands first: XLA has no CPU kernel for bf16 factors of a float32 result the other way round
    return jnp.einsum(subscripts, kernel, fields, out_sharding=cut, preferred_element_type=jnp.float32)


def _kernel_gradient(fields, dy, cut):
    """sum fields[b,c,l,w] dy[b,o,l,w], row by row: XLA would pad both to split one product of millions of terms."""
    cut = PartitionSpec(LOGICAL_AXES["batch"], LOGICAL_AXES["lat"], *cut)
    rows = jnp.einsum("bclw,bolw->blco", fields, dy, out_sharding=cut, preferred_element_type=jnp.float32)
    return rows.sum((0, 1))


class Blend(nnx.Module):
    """The published head: each grid point's next state from what was decoded and the state itself (Jigsaw, section 4).

        y = kernel^T LN(concat(LN(decoded), x)) + bias      over the predicted channels of one grid point

    Parameters, with c the padded channel dimension (rows of padding and static fields meet zeros and change nothing):
    inner_scale, inner_bias [c] of the LayerNorm of `decoded`; outer_scale, outer_bias [2, c] of the LayerNorm of the
    concatenation; kernel [2, c, c] (contracted, produced); bias [c]. Index 0 of the leading 2 is LN(decoded), 1 is x.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        vector, stacked = ("channel_vector",), ("stack", "channel_vector")
        self.inner_scale = parameter(ones, rngs, vector, (channels,))
        self.inner_bias = parameter(zeros, rngs, vector, (channels,))
        self.outer_scale = parameter(ones, rngs, stacked, (2, channels))
        self.outer_bias = parameter(zeros, rngs, stacked, (2, channels))
        names = ("stack", "channel_in", "channel_out")
        self.kernel = parameter(kernel_init(2 * channels), rngs, names, (2, channels, channels))
        self.bias = parameter(zeros, rngs, vector, (channels,))

    def __call__(
        self, decoded: Float[Array, "b c lat lon"], x: Float[Array, "b c lat lon"], predicted: Bool[np.ndarray, " c"]
    ) -> Float[Array, "b c lat lon"]:
        mask = predicted.astype(np.float32)
        kernel = self.kernel[...] * np.outer(mask, mask)[None]
        scale, bias = self.inner_scale[...] * mask, self.inner_bias[...] * mask
        outer = self.outer_scale[...][:, :, None] * kernel

        def vector(values, kernel):
            return jnp.einsum("c,co->o", values, kernel, out_sharding=spec("channel_vector"))

        shift = vector(self.outer_bias[0], kernel[0]) + vector(self.outer_bias[1], kernel[1]) + self.bias[...] * mask
        weights = dict(
            first=scale[:, None] * outer[0],
            second=outer[1],
            scale=scale,
            bias=bias,
            constant=vector(bias, outer[0]),
            total=vector(jnp.ones_like(bias), outer[0] + outer[1]),
            shift=shift,
        )
        return blend(decoded, x, weights, tuple(predicted.tolist()))


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
