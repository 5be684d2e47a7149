"""Augmentation that keeps the physics exact: the atmosphere's laws do not know where longitude zero is."""

import jax
import jax.numpy as jnp
from jax.sharding import reshard
from jaxtyping import Array, Float, Key

from weathermixer.parallel.mesh import spec

AUGMENTATIONS = ("none", "rotate_longitude")


def rotate_longitude(
    fields: tuple[Float[Array, "b c lat lon"], ...], key: Key[Array, ""]
) -> tuple[Float[Array, "b c lat lon"], ...]:
    """Turns each sample about the globe's axis by its own whole number of columns, the same in all `fields`.

        rotated[b, c, i, (j + s_b) % lon] = fields[b, c, i, j]        s_b uniform in 0 .. lon - 1

    Input (with its static fields, so that the land turns along) and target together are a sample of an equally valid
    planet: 64 columns make 64 of each. Longitude is not cut on any mesh, so nothing moves between devices.
    """
    batch, *_, lon = fields[0].shape
    shifts = reshard(jax.random.randint(key, (batch,), 0, lon), spec("batch"))
    roll = jax.vmap(lambda field, shift: jnp.roll(field, shift, axis=-1))
    cut = spec("batch", "channel", "lat", "lon")
    local = jax.shard_map(
        lambda fields, shifts: tuple(roll(field, shifts) for field in fields),
        in_specs=((cut,) * len(fields), spec("batch")),
        out_specs=(cut,) * len(fields),
    )
    return local(tuple(fields), shifts)
