"""How operands of products travel over a mesh axis: whole, or chunk by chunk while others are multiplied. In shard_map.

An operand is a device's part of a matrix or, in 8-bit floats, the same twice (fp8.Quantized); of the two, what no
product uses is neither computed nor sent.

    gather     every device gets every part of a cut operand    for owner, chunk in arrive(x, ...): ...
    scatter    every device gets its part of a sum              deliver(lambda owner: term of owner's part, ...)

Each is the other's transpose. In the ring forms chunk k goes straight to the device k places on, not through its
neighbours: through a switch both cost the same bytes, but straight there is no chain of dependent hops, and a partial
sum is rounded once on its way instead of at every hop. Chunks of 8-bit floats bring their units along, and have one
where they are put together.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from weathermixer.parallel.fp8 import Operand, Quantized


def _each(operand: Operand, dim: int, f: Callable[[Array, int], Array]) -> Operand:
    """f(array, dimension) of an operand: of both orders where it has two."""
    if isinstance(operand, Quantized):
        return Quantized(f(operand.straight, dim), f(operand.turned, 1 - dim), operand.unit)
    return f(operand, dim)


def arrive(x: Operand, axis: str, dim: int, *, ring: bool) -> Iterator[tuple[Array | None, Operand]]:
    """Yields (owner, chunk) for every device's part of x along a mesh axis, the own one first; or (None, all of x)."""
    if not ring:
        yield None, gather(x, axis, dim, ring=ring)
        return
    devices, me = lax.axis_size(axis), lax.axis_index(axis)
    for k in range(devices):
        yield (me + k) % devices, jax.tree.map(lambda array: _shift(array, axis, -k), x)  # noqa: B023


def gather(x: Operand, axis: str, dim: int, *, ring: bool) -> Operand:
    """All parts of x along a mesh axis, in the order of their owners."""
    if ring:
        return in_order([chunk for _, chunk in arrive(x, axis, dim, ring=ring)], axis, dim)
    with jax.named_scope("exchange"):  # a profile shows regions by such names
        if isinstance(x, Quantized):
            unit = lax.pmax(x.unit, axis)
            x = x.in_units(unit)
        return _each(x, dim, lambda array, dim: lax.all_gather(array, axis, axis=dim, tiled=True))


def deliver(term: Callable[[Array | None], Array], axis: str, dim: int, *, ring: bool) -> Array:
    """This device's part of the sum over a mesh axis of term(owner), the own term last, under the others' travel."""
    if not ring:
        own = term(None)
        with jax.named_scope("exchange"):
            return lax.psum_scatter(own, axis, scatter_dimension=dim, tiled=True)
    devices, me = lax.axis_size(axis), lax.axis_index(axis)
    return add(_shift(term((me + k) % devices), axis, k) for k in reversed(range(devices)))


@jax.named_scope("exchange")
def _shift(x, axis, by):
    """Sends x to the device `by` places on along a mesh axis."""
    devices = lax.axis_size(axis)
    return x if by == 0 else lax.ppermute(x, axis, [(device, (device + by) % devices) for device in range(devices)])


def add(terms: Iterable[Array]) -> Array:
    """The sum of a few arrays, in float32 at least, in their dtype."""
    terms = list(terms)
    wide = jnp.promote_types(terms[0].dtype, jnp.float32)
    return functools.reduce(jnp.add, [term.astype(wide) for term in terms]).astype(terms[0].dtype)


def part(x: Operand, owner: Array | None, axis: str, dim: int) -> Operand:
    """The part of a dimension that `owner` holds along a mesh axis; all of it where owner is None."""
    if owner is None:
        return x

    def cut(array, dim):
        size = array.shape[dim] // lax.axis_size(axis)
        return lax.dynamic_slice_in_dim(array, owner * size, size, dim)

    return _each(x, dim, cut)


def in_order(chunks: Sequence[Operand], axis: str, dim: int) -> Operand:
    """Chunks as they arrived, the own one first, put together in the order of their owners; in one pass over memory."""
    if len(chunks) == 1:
        return chunks[0]
    if isinstance(chunks[0], Quantized):
        unit = functools.reduce(jnp.maximum, [chunk.unit for chunk in chunks])
        chunks = [chunk.in_units(unit) for chunk in chunks]
        straight, turned = ([getattr(chunk, name) for chunk in chunks] for name in ("straight", "turned"))
        return Quantized(in_order(straight, axis, dim), in_order(turned, axis, 1 - dim), unit)
    size, devices = chunks[0].shape[dim], len(chunks)
    start = (devices - lax.axis_index(axis)) % devices * size
    return lax.dynamic_slice_in_dim(jnp.concatenate([*chunks, *chunks], dim), start, devices * size, dim)
