"""The distributed contraction: one function mixes over channels or over tokens, on any mesh.

An activation [batch, token, embed] is cut over both model axes. Mixing channels contracts its last dimension over
`tensor`, mixing tokens its middle one over `domain`: the same operation with the axes' roles swapped, without a
transpose (Jigsaw, section 3). The kernel is gathered over the axis that is not contracted; partial products are summed
and cut.
"""

from typing import Literal

import jax.numpy as jnp
from jax.sharding import reshard
from jaxtyping import Array, Float

from weathermixer.mesh import LOGICAL_AXES, gathered, spec

Over = Literal["channel", "token"]


def mix(x: Float[Array, "b t d"], kernel: Float[Array, "i o"], *, over: Over) -> Float[Array, "b t2 d2"]:
    """Contracts an activation with a kernel over its channels or over its tokens.

        over="channel":  y[b, t, o] = sum_i x[b, t, i] kernel[i, o]      kernel cut ("embed_in", "embed_out")
        over="token":    y[b, o, d] = sum_i x[b, i, d] kernel[i, o]      kernel cut ("token_in", "token_out")

    The result is cut as the activation: ("batch", "token", "embed").
    """
    if over == "channel":
        kernel = reshard(kernel, gathered(("embed_in", "embed_out"), LOGICAL_AXES["token"]))
        return jnp.einsum("bti,io->bto", x, kernel, out_sharding=spec("batch", "token", "embed"))
    kernel = reshard(kernel, gathered(("token_in", "token_out"), LOGICAL_AXES["embed"]))
    return jnp.einsum("bid,io->bod", x, kernel, out_sharding=spec("batch", "token", "embed"))
