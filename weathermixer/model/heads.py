"""From decoded fields to the next state: the published blend, or an increment added to the state."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from weathermixer.mesh import spec
from weathermixer.model.layers import EPSILON, constant_init, kernel_init, parameter


def masked_norm(
    x: Float[Array, "b ... c lat lon"], mask: Bool[np.ndarray, " c"], axes: tuple[int, ...]
) -> Float[Array, "b ... c lat lon"]:
    """Normalizes over `axes` to mean zero and variance one, counting the channels of the mask alone; others come out zero."""
    weight = mask.astype(np.float32)[:, None, None].reshape((1,) * (x.ndim - 3) + (len(mask), 1, 1))
    stacked = int(np.prod([x.shape[axis] for axis in axes])) // len(mask)
    count = float(mask.sum() * stacked)
    mean = (x * weight).sum(axes, keepdims=True) / count
    centred = (x - mean) * weight
    variance = jnp.square(centred).sum(axes, keepdims=True) / count
    return centred * jax.lax.rsqrt(variance + EPSILON)


class Blend(nnx.Module):
    """The published head: each grid point's next state from what was decoded and the state itself (Jigsaw, section 4).

        y = kernel^T LN(concat(LN(decoded), x)) + bias      over the predicted channels of one grid point

    Parameters, with c the padded channel dimension (rows of padding and static fields meet zeros and change nothing):
    inner_scale, inner_bias [c] of the LayerNorm of `decoded`; outer_scale, outer_bias [2, c] of the LayerNorm of the
    concatenation; kernel [2, c, c] (contracted, produced); bias [c]. Index 0 of the leading 2 is LN(decoded), index 1 is x.
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
            return vector[..., None, None][None]

        mask = predicted.astype(np.float32)[None, :, None, None]
        inner = masked_norm(decoded, predicted, (1,)) * grid(self.inner_scale[...]) + grid(self.inner_bias[...])
        both = jnp.stack([inner * mask, x * mask], axis=1)
        outer = masked_norm(both, predicted, (1, 2)) * grid(self.outer_scale[...]) + grid(self.outer_bias[...])
        y = jnp.einsum(
            "bsclw,sco->bolw",
            outer * mask[:, None],
            self.kernel[...],
            out_sharding=spec("batch", "channel", "lat", "lon"),
        )
        return (y + grid(self.bias[...])) * mask


class Increment(nnx.Module):
    """The state plus a decoded increment, in units of each channel's 6 h tendency; it has no parameters.

        y = x + tendency * decoded      on predicted channels, zero elsewhere

    `tendency` is the standard deviation of the standardized 6 h change, so that one unit of `decoded` is a typical step of
    any channel, and zero is persistence.
    """

    def __init__(self, tendency: Sequence[float]):
        self.tendency = tuple(float(value) for value in tendency)

    def __call__(
        self, decoded: Float[Array, "b c lat lon"], x: Float[Array, "b c lat lon"], predicted: Bool[np.ndarray, " c"]
    ) -> Float[Array, "b c lat lon"]:
        mask = predicted.astype(np.float32)[None, :, None, None]
        tendency = np.asarray(self.tendency, np.float32)[None, :, None, None]
        return (x + tendency * decoded) * mask
