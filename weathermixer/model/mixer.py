"""The mixer block: an MLP over tokens, then one over channels, behind LayerNorms and residuals (Jigsaw, section 4)."""

import functools
from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from weathermixer.model.elementwise import gelu
from weathermixer.model.layers import Dense, LayerNorm, dropout, fold_key
from weathermixer.model.shape import ModelShape
from weathermixer.parallel.schedule import Schedule


class Mlp(nnx.Module):
    """A layer, exact GELU, a layer, over the channels or over the tokens of an activation.

    Parameters, of Dense: up.kernel [size, hidden], up.bias [hidden], down.kernel [hidden, size], down.bias [size].
    """

    def __init__(self, layer: Callable[[int, int], nnx.Module], size: int, hidden: int, *, dropout_rate: float):
        self.up = layer(size, hidden)
        self.down = layer(hidden, size)
        self.dropout_rate = dropout_rate

    def __call__(self, x: Float[Array, "b t d"], key: Key[Array, ""] | None) -> Float[Array, "b t d"]:
        hidden = self.up(x, finish=gelu)
        hidden = dropout(hidden, self.dropout_rate, fold_key(key, 0))
        return dropout(self.down(hidden), self.dropout_rate, fold_key(key, 1))


class MixerBlock(nnx.Module):
    """h = h + TokenMLP(LN(h));  h = h + ChannelMLP(LN(h)).

    Parameters: token_norm, token_mlp (tokens -> token_hidden -> tokens), channel_norm, channel_mlp (embed ->
    embed_hidden -> embed).
    """

    def __init__(self, shape: ModelShape, *, schedule: Schedule, fp8: bool, rngs: nnx.Rngs):
        layer = functools.partial(Dense, schedule=schedule, fp8=fp8, rngs=rngs)
        over_tokens = functools.partial(layer, over="token", columns=max(shape.circulant, 1))
        over_channels = functools.partial(layer, over="channel")
        rate = shape.dropout_rate
        self.token_norm = LayerNorm(shape.embed, conditions=shape.conditions, rngs=rngs)
        self.token_mlp = Mlp(over_tokens, shape.tokens, shape.token_hidden, dropout_rate=rate)
        self.channel_norm = LayerNorm(shape.embed, conditions=shape.conditions, rngs=rngs)
        self.channel_mlp = Mlp(over_channels, shape.embed, shape.embed_hidden, dropout_rate=rate)

    def __call__(
        self, h: Float[Array, "b t d"], key: Key[Array, ""] | None, condition: Float[Array, "b n"] | None = None
    ) -> Float[Array, "b t d"]:
        with jax.named_scope("token_mixing"):
            h = h + self.token_mlp(self.token_norm(h, condition), fold_key(key, 0))
        with jax.named_scope("channel_mixing"):
            return h + self.channel_mlp(self.channel_norm(h, condition), fold_key(key, 1))
