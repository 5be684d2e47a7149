"""Fields on the grid to tokens and back.

Tokens are ordered latitude-major, features (channel, row offset, column offset): a latitude band is a contiguous run of
tokens and a channel group a contiguous run of features, so that cutting either cuts both, and nothing moves.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from weathermixer.parallel.mesh import spec


def patch(fields: Float[Array, "b c lat lon"], size: tuple[int, int]) -> Float[Array, "b token feature"]:
    """Cuts fields into patches of `size` = (rows, columns).

    tokens[b, i * (lon / columns) + j, (c * rows + r) * columns + s] = fields[b, c, i * rows + r, j * columns + s]
    """
    batch, channels, lat, lon = fields.shape
    rows, columns = size
    split = jnp.reshape(
        fields,
        (batch, channels, lat // rows, rows, lon // columns, columns),
        out_sharding=spec("batch", "channel", "lat", None, "lon", None),
    )
    ordered = split.transpose(0, 2, 4, 1, 3, 5)
    tokens, features = (lat // rows) * (lon // columns), channels * rows * columns
    return jnp.reshape(ordered, (batch, tokens, features), out_sharding=spec("batch", "token", "feature"))


def unpatch(
    tokens: Float[Array, "b token feature"], size: tuple[int, int], grid: tuple[int, int]
) -> Float[Array, "b c lat lon"]:
    """Puts patches back on the (lat, lon) grid: the inverse of `patch`."""
    batch, _, features = tokens.shape
    (rows, columns), (lat, lon) = size, grid
    channels = features // (rows * columns)
    split = jnp.reshape(
        tokens,
        (batch, lat // rows, lon // columns, channels, rows, columns),
        out_sharding=spec("batch", "lat", "lon", "channel", None, None),
    )
    ordered = split.transpose(0, 3, 1, 4, 2, 5)
    return jnp.reshape(ordered, (batch, channels, lat, lon), out_sharding=spec("batch", "channel", "lat", "lon"))
