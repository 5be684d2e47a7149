"""Members of an ensemble: rows of a batch, each a member of some start, with noise and a perturbation of its own.

Both are drawn from (seed, start, member, step), whatever is computed together and on which mesh.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import reshard
from jaxtyping import Array, Float, Int

from weathermixer.archive.frames import Frames
from weathermixer.parallel.mesh import spec


@dataclasses.dataclass(frozen=True)
class Members:
    """Which members some forecasts are, one of each start, and what makes them differ.

    numbers are those of the starts' members; noise counts the numbers of it that the model takes at every step
    (ModelShape.noise); perturbation is the standard deviation of the noise that a start is given on every point of
    predicted channels, in parts of the channel's own. Raises ValueError where nothing makes members differ.
    """

    numbers: Int[np.ndarray, " start"]
    noise: int
    perturbation: float
    seed: int

    def __post_init__(self):
        if not len(self.numbers) or self.perturbation < 0:
            raise ValueError(f"{len(self.numbers)} members, perturbation={self.perturbation}: 1 and 0 are the least")
        if self.numbers.max() > 0 and not self.noise and not self.perturbation:
            raise ValueError(
                "all members would be the same: this model takes no noise (config.model.noise); give a perturbation of "
                "their starts, such as 0.02"
            )

    def take(self, rows: Int[np.ndarray, " b"]) -> "Members":
        """Those of some of the starts."""
        return dataclasses.replace(self, numbers=self.numbers[rows])

    def begin(
        self, frames: Frames, state: Float[Array, "b n lat lon"], times: np.ndarray
    ) -> tuple[Float[Array, "b n lat lon"], Callable[[int], Float[Array, "b k"]] | None]:
        """The perturbed states that begin at these times, and the noise of the prediction of so many steps."""
        hours = times.astype("datetime64[h]").astype(np.int64).astype(np.uint32)
        keys = _fold(jax.random.key(self.seed), hours, self.numbers.astype(np.uint32))
        if self.perturbation:
            predicted = frames.reference.channel_set.predicted.astype(np.float32)
            state = _perturb(state, keys, self.perturbation * predicted)
        return state, (lambda steps: _draw(keys, steps, self.noise)) if self.noise else None


_fold = jax.jit(
    jax.vmap(lambda key, *data: jax.random.fold_in(jax.random.fold_in(key, data[0]), data[1]), (None, 0, 0))
)


@jax.jit(static_argnums=2)
def _draw(keys, steps, size):
    drawn = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, steps), (size,)))(keys)
    return reshard(drawn, spec("batch", None))


@jax.jit
def _perturb(state, keys, amplitude):
    cut = spec("channel", "lat", "lon")
    rows = [jax.random.normal(jax.random.fold_in(key, 0), state.shape[1:], out_sharding=cut) for key in keys]
    return state + amplitude[None, :, None, None] * reshard(jnp.stack(rows), jax.typeof(state).sharding.spec)
