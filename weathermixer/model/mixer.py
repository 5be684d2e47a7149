"""The mixer block: an MLP over tokens, then one over channels, behind LayerNorms and residuals (Jigsaw, section 4)."""

import functools
from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from weathermixer.model.elementwise import gelu
from weathermixer.model.layers import Circulant, Dense, LayerNorm, dropout, fold_key
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
    embed_hidden -> embed). Token mixing is circulant along rows of `circulant` tokens; 0: dense.
    """

    def __init__(
        self,
        *,
        tokens: int,
        embed: int,
        token_hidden: int,
        embed_hidden: int,
        circulant: int,
        conditions: int,
        schedule: Schedule,
        fp8: bool,
        dropout_rate: float,
        rngs: nnx.Rngs,
    ):
        options = dict(schedule=schedule, fp8=fp8, rngs=rngs)
        over_tokens, over_channels = (functools.partial(Dense, over=over, **options) for over in ("token", "channel"))
        if circulant:
            over_tokens = functools.partial(Circulant, columns=circulant, **options)
        self.token_norm = LayerNorm(embed, conditions=conditions, rngs=rngs)
        self.token_mlp = Mlp(over_tokens, tokens, token_hidden, dropout_rate=dropout_rate)
        self.channel_norm = LayerNorm(embed, conditions=conditions, rngs=rngs)
        self.channel_mlp = Mlp(over_channels, embed, embed_hidden, dropout_rate=dropout_rate)

    def __call__(
        self, h: Float[Array, "b t d"], key: Key[Array, ""] | None, condition: Float[Array, "b n"] | None = None
    ) -> Float[Array, "b t d"]:
        with jax.named_scope("token_mixing"):
            h = h + self.token_mlp(self.token_norm(h, condition), fold_key(key, 0))
        with jax.named_scope("channel_mixing"):
            return h + self.channel_mlp(self.channel_norm(h, condition), fold_key(key, 1))
