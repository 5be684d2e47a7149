"""WeatherMixer: encode, mix, decode, blend (Kieckhefen et al. 2025, arXiv 2507.05753, section 4)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import zeros
from jaxtyping import Array, Float, Int, Key

from weathermixer.model.elementwise import add_bias
from weathermixer.model.heads import Blend, Increment
from weathermixer.model.layers import Dense, LayerNorm, dense_bias, fold_key, kernel_init, parameter, resolve_schedule
from weathermixer.model.mixer import MixerBlock
from weathermixer.model.patching import patch, unpatch
from weathermixer.model.shape import REMATERIALIZE, ModelShape
from weathermixer.parallel.jigsaw import mix
from weathermixer.parallel.mesh import check_divides, spec
from weathermixer.parallel.schedule import Schedule, kernel_names
from weathermixer.parallel.zero import gather_instances


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
        self.blocks = nnx.List(MixerBlock(shape, schedule=schedule, fp8=fp8, rngs=rngs) for _ in range(shape.blocks))
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
        encode = self.encode
        kernels = [encode.kernel[...]]
        if len(frames) == 2:
            kernels.append(self.previous_kernel[...])
        features = [patch(frame.astype(self.compute_dtype), self.shape.patch) for frame in frames]
        y = mix(features, kernels, over="channel", schedule=encode.schedule)
        return add_bias(y, dense_bias(encode.bias[...], "channel"))

    def _apply_block(self, block, *inputs):
        run = MixerBlock.__call__
        return (jax.checkpoint(run) if self.rematerialize == "block" else run)(block, *inputs)

    def _decode(self, h, encoded, condition):
        kernel, normal = self.decode_kernel[...], self.norm(h, condition)
        y = mix((normal, encoded), (kernel[0], kernel[1]), over="channel", schedule=self.decode_schedule)
        return add_bias(y, dense_bias(self.decode_bias[...], "channel"))
