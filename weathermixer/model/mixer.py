"""The mixer block: an MLP over tokens, then one over channels, behind LayerNorms and residuals (Jigsaw, section 4)."""

from flax import nnx
from jaxtyping import Array, Float, Key

from weathermixer.model.elementwise import gelu
from weathermixer.model.layers import Dense, LayerNorm, dropout, fold_key
from weathermixer.parallel.schedule import Over, Schedule


class Mlp(nnx.Module):
    """Dense, exact GELU, dense, over the channels or over the tokens of an activation.

    Parameters: up.kernel [size, hidden], up.bias [hidden], down.kernel [hidden, size], down.bias [size].
    """

    def __init__(
        self,
        size: int,
        hidden: int,
        *,
        over: Over,
        schedule: Schedule,
        fp8: bool,
        dropout_rate: float,
        rngs: nnx.Rngs,
    ):
        self.up = Dense(size, hidden, over=over, schedule=schedule, fp8=fp8, rngs=rngs)
        self.down = Dense(hidden, size, over=over, schedule=schedule, fp8=fp8, rngs=rngs)
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

    def __init__(
        self,
        *,
        tokens: int,
        embed: int,
        token_hidden: int,
        embed_hidden: int,
        schedule: Schedule,
        fp8: bool,
        dropout_rate: float,
        rngs: nnx.Rngs,
    ):
        options = dict(schedule=schedule, fp8=fp8, dropout_rate=dropout_rate, rngs=rngs)
        self.token_norm = LayerNorm(embed, rngs=rngs)
        self.token_mlp = Mlp(tokens, token_hidden, over="token", **options)
        self.channel_norm = LayerNorm(embed, rngs=rngs)
        self.channel_mlp = Mlp(embed, embed_hidden, over="channel", **options)

    def __call__(self, h: Float[Array, "b t d"], key: Key[Array, ""] | None) -> Float[Array, "b t d"]:
        h = h + self.token_mlp(self.token_norm(h), fold_key(key, 0))
        return h + self.channel_mlp(self.channel_norm(h), fold_key(key, 1))
