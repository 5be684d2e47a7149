"""Members of an ensemble: rows of a batch, each a member of some start, with noise and a perturbation of its own.

Both are drawn from (seed, start, member, step), whatever is computed together and on which mesh.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import reshard
from jaxtyping import Array, Float, Int, Key

from weathermixer.archive.frames import Frames
from weathermixer.archive.sampling import days_of_year, find_times
from weathermixer.fields.grid import Grid
from weathermixer.parallel.mesh import put, spec

# what is added to members' starts: noise of every point by itself, noise that is smooth over `correlation_km`, the
# difference of two analyses of the data; or nothing, and they start each a step before the other (runs/run.py)
PERTURBATIONS = ("white", "smooth", "analyses", "lagged")
SEASON_DAYS = 45  # how far from a start's day of the year, in any year, the two analyses may be
WAVES = 128  # of smooth noise
EARTH_RADIUS_KM = 6371.0


@dataclasses.dataclass(frozen=True)
class Members:
    """Which members some forecasts are, one of each start, and what makes them differ.

    White and smooth noise have deviation 1, in units of the channel's own; the pattern of analyses is (x - y) / sqrt(2)
    of two different ones, drawn from the data's own at the start's hour of day and in its season: as far as weather is
    from the normal there. Raises ValueError where nothing makes members differ, and for what does not go together.
    """

    numbers: Int[np.ndarray, " start"]
    noise: int  # how many numbers of it the model takes at every step (ModelShape.noise)
    perturbation: float  # so much of a pattern is added to the predicted channels of a start
    seed: int
    kind: str = "white"  # of the pattern: one of PERTURBATIONS
    correlation_km: float = 1000.0  # of smooth noise

    def __post_init__(self):
        if not len(self.numbers) or self.perturbation < 0 or self.correlation_km <= 0:
            raise ValueError(
                f"{len(self.numbers)} members, perturbation={self.perturbation}, correlation_km={self.correlation_km}: "
                "1 and 0 are the least, and the length is above 0"
            )
        if self.kind not in PERTURBATIONS:
            raise ValueError(f"perturbation_kind={self.kind!r} is not one of {PERTURBATIONS}")
        if self.kind != "white" and (self.kind == "lagged") == (self.perturbation > 0):
            raise ValueError(
                f"perturbation_kind={self.kind!r} with perturbation={self.perturbation}: lagged members go with 0, the "
                "other kinds with a part of the deviation, such as 0.1"
            )
        if self.numbers.max() > 0 and not self.noise and not self.perturbation and self.kind != "lagged":
            raise ValueError(
                "all members would be the same: this model takes no noise (config.model.noise); give a perturbation of "
                "their starts, such as 0.02"
            )

    def take(self, rows: Int[np.ndarray, " b"]) -> "Members":
        """Those of some of the starts."""
        return dataclasses.replace(self, numbers=self.numbers[rows])

    def find_origins(self, frames: Frames, times: np.ndarray, *, step_hours: int) -> np.ndarray:
        """The times that members of starts at these times begin at: lagged ones a step before the member before them.

        Raises ValueError where the data lacks them, or has no two analyses for a difference.
        """
        for start in np.unique(times) if self.kind == "analyses" else ():
            _find_alike(frames, start)
        origins = times - self.numbers * np.timedelta64(step_hours if self.kind == "lagged" else 0, "h")
        lacking = find_times(frames.times, origins) < 0
        if lacking.any():
            raise ValueError(
                f"{frames.name} lacks {origins[lacking][0]:.13}, where a lagged member of {times[lacking][0]:.13} "
                "begins: give fewer members, or starts that have as many analyses before them"
            )
        return origins

    def begin(
        self, frames: Frames, state: Float[Array, "b n lat lon"], times: np.ndarray
    ) -> tuple[Float[Array, "b n lat lon"], Callable[[int], Float[Array, "b k"]] | None]:
        """The perturbed states that begin at these times, and the noise of the prediction of so many steps."""
        hours = times.astype("datetime64[h]").astype(np.int64).astype(np.uint32)
        keys = _fold(jax.random.key(self.seed), hours, self.numbers.astype(np.uint32))
        if self.perturbation:
            if self.kind == "analyses":
                drawn = zip(times, hours.tolist(), self.numbers.tolist(), strict=True)
                alike = {start: _find_alike(frames, start) for start in np.unique(times)}
                pairs = [_draw_pair(alike[start], self.seed, hour, number) for start, hour, number in drawn]
                first, second = (frames.read(analyses) for analyses in np.transpose(pairs))
                pattern = jnp.nan_to_num((first - second) / 2**0.5)  # nothing where one lacks a value
            elif self.kind == "smooth":
                places = _find_places(frames.reference.grid, EARTH_RADIUS_KM / self.correlation_km)
                pattern = _draw_smooth(keys, put(places, frames.mesh, None, "lat", "lon"), state.shape[1])
            else:
                pattern = _draw_white(keys, state.shape[1:])
            predicted = frames.reference.channel_set.predicted.astype(np.float32)
            state = _add(state, pattern, self.perturbation * predicted)
        return state, (lambda steps: _draw(keys, steps, self.noise)) if self.noise else None


_fold = jax.jit(
    jax.vmap(lambda key, *data: jax.random.fold_in(jax.random.fold_in(key, data[0]), data[1]), (None, 0, 0))
)


@jax.jit(static_argnums=2)
def _draw(keys, steps, size):
    drawn = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, steps), (size,)))(keys)
    return reshard(drawn, spec("batch", None))


@jax.jit
def _add(state, pattern, amplitude):
    return state + amplitude[None, :, None, None] * reshard(pattern, jax.typeof(state).sharding.spec)


@jax.jit(static_argnums=1)
def _draw_white(keys, shape):
    cut = spec("channel", "lat", "lon")
    return jnp.stack([jax.random.normal(jax.random.fold_in(key, 0), shape, out_sharding=cut) for key in keys])


@jax.jit(static_argnums=2)
def _draw_smooth(
    keys: Key[Array, " b"], places: Float[Array, "3 lat lon"], channels: int
) -> Float[Array, "b n lat lon"]:
    """Noise whose correlation at a distance d through the sphere is exp(-d^2 / 2), at the poles as elsewhere.

        sqrt(2 / K) sum_k a[n, k] cos(w[k] . r + p[k])     a ~ N(0, 1),  w ~ N(0, 1) in space,  p ~ U(0, 2 pi)

    It is made of K waves in space, each point by itself (Rahimi and Recht 2007), and so the same on any mesh.
    """

    def draw(key):
        w, p, a = jax.random.split(jax.random.fold_in(key, 0), 3)
        w, p = jax.random.normal(w, (WAVES, 3)), jax.random.uniform(p, (WAVES, 1, 1), maxval=2 * np.pi)
        a = np.sqrt(2 / WAVES) * jax.random.normal(a, (channels, WAVES))
        waves = jnp.cos(jnp.einsum("kx,xij->kij", w, places, precision="highest") + p)
        return jnp.einsum("nk,kij->nij", a, waves, precision="highest", out_sharding=spec("channel", "lat", "lon"))

    return jax.lax.map(draw, keys)


def _find_places(grid: Grid, radius: float) -> Float[np.ndarray, "3 lat lon"]:
    lat, lon = np.deg2rad(grid.latitude)[:, None], np.deg2rad(grid.longitude)
    x, y, z = np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat) + 0 * lon
    return (radius * np.stack([x, y, z])).astype(np.float32)


def _find_alike(frames: Frames, start: np.datetime64) -> Int[np.ndarray, " n"]:
    """Indices of the analyses at a start's hour of day and in its season; ValueError for less than two."""
    apart = np.abs(days_of_year(frames.times) - days_of_year(np.array([start])))
    same_hour = (frames.times - start) % np.timedelta64(1, "D") == np.timedelta64(0, "D")
    alike = np.flatnonzero(same_hour & (np.minimum(apart, 366 - apart) <= SEASON_DAYS))
    if len(alike) < 2:
        raise ValueError(
            f"{frames.name} has {len(alike)} analyses at the hour and in the season of {start:.13}, a difference is of "
            "two: give data of more days, or perturbation_kind='smooth'"
        )
    return alike


def _draw_pair(alike: Int[np.ndarray, " n"], *seed: int) -> Int[np.ndarray, "2"]:
    """Two different ones, in either order, all as likely."""
    count, word = len(alike), int(np.random.PCG64(np.random.SeedSequence(seed)).random_raw())
    first, second = divmod(word % (count * (count - 1)), count - 1)
    return alike[[first, second + (second >= first)]]
