"""WeatherMixer: encode, mix, decode, blend (Kieckhefen et al. 2025, arXiv 2507.05753, section 4)."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import zeros
from jaxtyping import Array, Float, Int, Key

from weathermixer.model.elementwise import add_bias
from weathermixer.model.heads import Blend, Increment
from weathermixer.model.layers import (
    Dense,
    LayerNorm,
    dense_bias,
    fold_key,
    kernel_init,
    parameter,
    resolve_schedule,
)
from weathermixer.model.mixer import MixerBlock
from weathermixer.model.patching import patch, unpatch
from weathermixer.parallel.jigsaw import mix
from weathermixer.parallel.mesh import check_divides, spec
from weathermixer.parallel.schedule import Schedule, kernel_names
from weathermixer.parallel.zero import gather_instances

HEADS = ("blend", "increment")
REMATERIALIZE = ("none", "block")
TOKEN_MIXING = ("dense", "circulant")


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """The sizes of a WeatherMixer. The defaults, but for the grid and the channels, are the published 1.06 B model's.

    Attributes:
      grid: (lat, lon) points.
      channels: length of the channel dimension, static fields and padding included.
      predicted: how many channels, the first ones, are predicted.
      patch: (rows, columns) of a token.
      embed: features of a token (D).
      token_hidden: hidden size of token mixing (H).
      embed_hidden: hidden size of channel mixing (F).
      blocks: mixer blocks.
      head: "blend" (published) or "increment".
      dropout_rate: in the MLPs.
      history: frames that the model sees: 1 as published, or 2, the state and the one a step before it.
      noise: numbers that make one member of an ensemble of the others: the norms' scales and biases depend on them.
      leads: for how many leads the model is one; with more than one it is told which, as it is told noise.
      token_mixing: "dense" (published), or "circulant" along longitude: token_hidden is then whole rows of tokens.

    Raises ValueError for a patch that does not divide the grid, an unknown head, and counts that cannot be.

    >>> shape = weathermixer.ModelShape(grid=(32, 64), channels=8, predicted=6, patch=(2, 4), embed=64)
    >>> shape.tokens, shape.features
    (256, 64)
    """

    grid: tuple[int, int] = (720, 1440)
    channels: int = 72
    predicted: int = 69
    patch: tuple[int, int] = (1, 60)
    embed: int = 4320
    token_hidden: int = 8640
    embed_hidden: int = 4320
    blocks: int = 3
    head: str = "blend"
    dropout_rate: float = 0.0
    history: int = 1
    token_mixing: str = "dense"
    noise: int = 0
    leads: int = 1

    def __post_init__(self):
        if self.noise < 0 or self.leads < 1:
            raise ValueError(f"noise={self.noise} must be at least 0, leads={self.leads} at least 1")
        for what, size, part in zip(("latitude", "longitude"), self.grid, self.patch, strict=True):
            if size % part:
                raise ValueError(
                    f"{what}={size} is not divisible by the patch's {part}: choose model.patch to divide it"
                )
        if self.head not in HEADS:
            raise ValueError(f"head={self.head!r} is not one of {HEADS}")
        if self.token_mixing not in TOKEN_MIXING:
            raise ValueError(f"token_mixing={self.token_mixing!r} is not one of {TOKEN_MIXING}")
        if self.circulant and self.token_hidden % self.circulant:
            raise ValueError(
                f"token_hidden={self.token_hidden} is not whole rows of {self.circulant} tokens, which "
                f"token_mixing='circulant' needs: choose a multiple of {self.circulant}"
            )
        if self.history not in (1, 2):
            raise ValueError(f"history={self.history} must be 1 or 2 frames")
        if self.head == "blend" and self.channels == 1:
            raise ValueError(
                "head='blend' mixes channels, and there is one: pad with config.data.channel_multiple=2, or take "
                "config.model.head=increment"
            )
        if not 0 < self.predicted <= self.channels:
            raise ValueError(f"predicted={self.predicted} channels of {self.channels}: it must be 1 to {self.channels}")

    @property
    def tokens(self) -> int:
        return (self.grid[0] // self.patch[0]) * (self.grid[1] // self.patch[1])

    @property
    def circulant(self) -> int:
        """Columns of tokens along which token mixing is circulant; 0: it is dense."""
        return self.grid[1] // self.patch[1] if self.token_mixing == "circulant" else 0

    @property
    def conditions(self) -> int:
        """Numbers that the norms of a sample are given: its noise, then one for each lead but the first."""
        return self.noise + self.leads - 1

    @property
    def features(self) -> int:
        """Features of a patch, before encoding and after decoding."""
        return self.channels * self.patch[0] * self.patch[1]

    @property
    def cuts(self) -> dict[str, tuple[str, int]]:
        """(logical name, size) of every dimension that a mesh has to divide, by what it is."""
        width = max(self.circulant, 1)  # tokens of a row: circulant kernels are cut by rows
        return dict(
            channels=("channel", self.channels),
            patch_rows=("lat", self.grid[0] // self.patch[0]),
            tokens=("token_vector", self.tokens // width),
            token_hidden=("token_vector", self.token_hidden // width),
            features=("embed_vector", self.features),
            embed=("embed_vector", self.embed),
            embed_hidden=("embed_vector", self.embed_hidden),
        )


class WeatherMixer(nnx.Module):
    """Maps the standardized state to the standardized state one step (6 h) later.

        e = encode(patch(x)) [+ previous_kernel^T patch(previous) where history is 2];  h = e
        repeat `repeats` times, for each block:  h = block(h)
        decoded = unpatch(kernel_h^T LN(h) + kernel_e^T e + bias);   y = head(decoded, x)

    Parameters, in the order that foreign weights must take: tokens latitude-major; patch features (channel, row,
    column), channels as in ChannelSet (dynamic, static, padding); every kernel [contracted, produced].
      encode.kernel [features, embed], encode.bias [embed]; previous_kernel [features, embed] where history is 2
      blocks[i].token_norm, .token_mlp, .channel_norm, .channel_mlp: see MixerBlock
      norm.scale, norm.bias [embed]
      decode_kernel [2, embed, features] (0: for LN(h), 1: for e), decode_bias [features]
      head: see Blend; none for Increment
    A PyTorch Linear's weight is [produced, contracted]: transpose it. A decoder bias of one value per channel is
    repeated over the patch.

    >>> from flax import nnx
    >>> sizes = dict(patch=(2, 4), embed=32, token_hidden=32, embed_hidden=32, blocks=1)
    >>> shape = weathermixer.ModelShape(grid=(8, 16), channels=4, predicted=3, **sizes)
    >>> mesh = weathermixer.make_mesh(1, 2, 2)
    >>> x = jnp.zeros((1, 4, 8, 16), device=weathermixer.sharding(mesh, "batch", "channel", "lat", "lon"))
    >>> with jax.set_mesh(mesh):
    ...     y = jax.jit(lambda x: weathermixer.WeatherMixer(shape, rngs=nnx.Rngs(0))(x))(x)
    >>> y.shape, tuple(y.sharding.spec)
    ((1, 4, 8, 16), ('data', 'tensor', 'domain', None))
    """

    def __init__(
        self,
        shape: ModelShape,
        *,
        rngs: nnx.Rngs,
        tendency: Sequence[float] | None = None,
        compute_dtype: jnp.dtype = jnp.float32,
        rematerialize: str = "none",
        schedule: Schedule = "auto",
        fp8: bool = False,
    ):
        """Initializes on the current mesh (weathermixer.parallel.mesh.use_mesh), every parameter on its own shards.

        Args:
          shape: the sizes.
          rngs: the stream `params` is used.
          tendency: [channel] standardized 6 h tendency standard deviation, for head="increment".
          compute_dtype: of activations and products; parameters, statistics and the state in the head stay float32.
          rematerialize: "none" or "block" (keep the blocks' inputs, compute the rest again in the backward pass).
          schedule: of the contractions, see weathermixer.parallel.schedule.
          fp8: the blocks' products in 8-bit floats (weathermixer.parallel.fp8); encode, decode and the head as without.

        Raises ValueError where a size does not divide over the mesh or an option is unknown.
        """
        check_divides(jax.sharding.get_abstract_mesh(), **shape.cuts)
        if rematerialize not in REMATERIALIZE:
            raise ValueError(f"rematerialize={rematerialize!r} is not one of {REMATERIALIZE}")
        self.shape = shape
        self.compute_dtype = jnp.dtype(compute_dtype)
        self.rematerialize = rematerialize
        encode_schedule = resolve_schedule(schedule, shape.history * shape.features, shape.embed, "channel")
        self.encode = Dense(shape.features, shape.embed, over="channel", schedule=encode_schedule, rngs=rngs)
        if shape.history == 2:
            # added to the other's product, it makes one affine map of both frames' features
            names = kernel_names("channel", encode_schedule)
            self.previous_kernel = parameter(kernel_init(shape.features), rngs, names, (shape.features, shape.embed))
        self.blocks = nnx.List(
            MixerBlock(
                tokens=shape.tokens,
                embed=shape.embed,
                token_hidden=shape.token_hidden,
                embed_hidden=shape.embed_hidden,
                circulant=shape.circulant,
                conditions=shape.conditions,
                schedule=schedule,
                fp8=fp8,
                dropout_rate=shape.dropout_rate,
                rngs=rngs,
            )
            for _ in range(shape.blocks)
        )
        self.norm = LayerNorm(shape.embed, conditions=shape.conditions, rngs=rngs)
        self.decode_schedule = resolve_schedule(schedule, 2 * shape.embed, shape.features, "channel")
        names = ("stack", *kernel_names("channel", self.decode_schedule))
        init = kernel_init(2 * shape.embed)
        self.decode_kernel = parameter(init, rngs, names, (2, shape.embed, shape.features))
        self.decode_bias = parameter(zeros, rngs, ("embed_vector",), (shape.features,))
        if shape.head == "blend":
            self.head = Blend(shape.channels, rngs=rngs)
        else:
            if tendency is None or len(tendency) != shape.channels:
                raise ValueError(
                    f"head='increment' needs tendency, one value for each of the {shape.channels} channels"
                )
            self.head = Increment(tendency)

    def __call__(
        self,
        x: Float[Array, "b c lat lon"],
        *,
        previous: Float[Array, "b c lat lon"] | None = None,
        repeats: int = 1,
        key: Key[Array, ""] | None = None,
        noise: Float[Array, "b n"] | None = None,
        lead: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b c lat lon"]:
        """The standardized state `repeats` steps later, zero on channels that are not predicted.

        Args:
          x: standardized dynamic channels and static fields.
          previous: the same a step before, where history is 2.
          repeats: latent rollout: how often the blocks are applied between one encode and one decode.
          key: of dropout; None means none.
          noise: standard normal numbers that make of each sample one member of an ensemble; None: zeros.
          lead: of each sample the number of its lead, of those that the model is for; None: the first.
        """
        if (previous is not None) != (self.shape.history == 2):
            raise ValueError(f"history={self.shape.history}: the previous frame is given exactly where it is 2")
        condition = self._condition(noise, lead, len(x))
        h = encoded = self._encode((x,) if previous is None else (x, previous))
        for repeat in range(repeats):
            for index, block in enumerate(self.blocks):
                h = self._apply_block(block, h, fold_key(key, repeat * self.shape.blocks + index), condition)
        with jax.named_scope("head"):
            decoded = unpatch(self._decode(h, encoded, condition), self.shape.patch, self.shape.grid)
            predicted = np.arange(self.shape.channels) < self.shape.predicted
            return gather_instances(self.head)(decoded, x, predicted)

    def _condition(self, noise, lead, batch):
        if noise is None and lead is None:
            return None
        zeros = jnp.zeros((batch, self.shape.conditions), out_sharding=spec("batch", None))
        places = zeros[:, self.shape.noise :] if lead is None else jax.nn.one_hot(lead, self.shape.leads)[:, 1:]
        return jnp.concatenate([zeros[:, : self.shape.noise] if noise is None else noise, places], axis=1)

    @jax.named_scope("encode")
    def _encode(self, frames):
        encode = gather_instances(self.encode)
        kernels = [encode.kernel[...]]
        if len(frames) == 2:
            kernels.append(gather_instances(self.previous_kernel[...]))
        features = [patch(frame.astype(self.compute_dtype), self.shape.patch) for frame in frames]
        y = mix(features, kernels, over="channel", schedule=encode.schedule)
        return add_bias(y, dense_bias(encode.bias[...], "channel"))

    def _apply_block(self, block, *inputs):
        def run(block, *inputs):
            return gather_instances(block)(*inputs)  # here: rematerialization then gathers again, and keeps no copy

        return (jax.checkpoint(run) if self.rematerialize == "block" else run)(block, *inputs)

    def _decode(self, h, encoded, condition):
        parts = (self.decode_kernel[...], self.decode_bias[...], self.norm)
        kernel, bias, norm = (gather_instances(part) for part in parts)
        y = mix((norm(h, condition), encoded), (kernel[0], kernel[1]), over="channel", schedule=self.decode_schedule)
        return add_bias(y, dense_bias(bias, "channel"))
