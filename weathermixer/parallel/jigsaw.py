"""The distributed contraction: one function mixes over channels or over tokens, on any mesh.

An activation [batch, token, embed] is cut over both model axes. Mixing channels contracts its last dimension over
`tensor`, mixing tokens its middle one over `domain`: the same operation with the axes' roles swapped, without a
transpose (Jigsaw, section 3). Below, `along` is the mesh axis that is contracted and `across` the other one.

Two things happen along the contracted axis, and each is the other's transpose:

    gather     every device gets every part of a cut array      for owner, chunk in _arrive(x, ...): ...
    scatter    every device gets its part of a sum              _deliver(lambda owner: term of owner's part, ...)

In the ring forms a chunk travels while another is multiplied. Chunk k goes straight to the device k places on, not
through its neighbours: through a switch both cost the same bytes, but straight there is no chain of dependent hops, and
a partial sum is rounded once on its way instead of at every hop. Kernels are gathered across the other axis in the same
chunks; they wait for nothing, so they travel under the products before. What moves, in bytes: schedule.py.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import reshard
from jaxtyping import Array, Float

from weathermixer.parallel.mesh import LOGICAL_AXES, gathered, spec
from weathermixer.parallel.schedule import SCHEDULES, Over, Schedule, kernel_names, moves_input

ACTIVATION = ("batch", "token", "embed")
# in memory activations are [token, batch, embed]: either mixing is then one plain matrix product, whatever the batch,
# and chunks along `domain` are contiguous; left alone, XLA may keep them embed-major and transpose at every norm
TOKEN_MAJOR = Layout(major_to_minor=(1, 0, 2))


def mix(
    x: Float[Array, "b t d"] | Sequence[Float[Array, "b t d"]],
    kernel: Float[Array, "i o"] | Sequence[Float[Array, "i o"]],
    *,
    over: Over,
    schedule: Schedule = "auto",
) -> Float[Array, "b t2 d2"]:
    """Contracts an activation with a kernel over its channels or over its tokens.

        over="channel":  y[b, t, o] = sum_i x[b, t, i] kernel[i, o]
        over="token":    y[b, o, d] = sum_i x[b, i, d] kernel[i, o]

    Args:
      x: cut ("batch", "token", "embed"), and so is the result. Of several activations with a kernel each the sum is
        returned: one contraction over all of them, whose result travels once.
      kernel: [contracted, produced], cut as `kernel_names(over, schedule)` says. It is cast to the activation's dtype
        before it travels; its gradient comes back in its own dtype.
      over: what is mixed.
      schedule: "auto" is the ring form for which the kernel is cut; "einsum" leaves the schedule to the compiler.

    Raises ValueError where the schedule is unknown or the kernel is not cut for it.

    >>> mesh = weathermixer.make_mesh(1, 2, 2)
    >>> x = jax.device_put(np.ones((1, 8, 4)), weathermixer.sharding(mesh, "batch", "token", "embed"))
    >>> kernel = jax.device_put(np.ones((8, 6)), weathermixer.sharding(mesh, "token_in", "token_out"))
    >>> with jax.set_mesh(mesh):
    ...     y = weathermixer.mix(x, kernel, over="token")
    >>> y.shape, tuple(y.sharding.spec)
    ((1, 6, 4), ('data', 'domain', 'tensor'))
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r} is not one of {SCHEDULES}")
    xs, kernels = ((x,), (kernel,)) if isinstance(x, jax.Array) else (tuple(x), tuple(kernel))
    cuts = [jax.typeof(one).sharding.spec for one in kernels]
    stored = "ring_gather" if cuts[0] == spec(*kernel_names(over, "gather")) else "ring_scatter"
    if schedule == "auto":
        schedule = stored
    names = kernel_names(over, stored if schedule == "einsum" else schedule)
    for cut in cuts:
        if cut != spec(*names):
            raise ValueError(
                f"kernel cut {cut} does not fit schedule={schedule!r} over {over}s: it is {spec(*names)} for {names}"
            )
    if schedule == "einsum":
        return _sum(_einsum(x, kernel, over, names) for x, kernel in zip(xs, kernels, strict=True))
    return _contract(xs, kernels, Way.of(over, schedule))


def _einsum(x, kernel, over, names):
    """The contraction in one line, its schedule left to the compiler: the reference."""
    kernel = reshard(kernel.astype(x.dtype), gathered(names, Way.of(over, "scatter").across))
    return jnp.einsum(
        {"channel": "bti,io->bto", "token": "bid,io->bod"}[over], x, kernel, out_sharding=spec(*ACTIVATION)
    )


@dataclasses.dataclass(frozen=True)
class Way:
    """How a contraction goes: over which dimension of x, along and across which mesh axes, what moves, and how."""

    dim: int
    along: str
    across: str
    gather: bool
    ring: bool

    @classmethod
    def of(cls, over: Over, schedule: Schedule) -> "Way":
        dim = {"token": 1, "channel": 2}[over]
        along, across = (LOGICAL_AXES[ACTIVATION[d]] for d in (dim, 3 - dim))
        return cls(dim, along, across, gather=moves_input(schedule), ring=schedule.startswith("ring"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _contract(xs, kernels, way):
    return _contract_forward(xs, kernels, way)[0]


def _contract_forward(xs, kernels, way):
    y = jax.shard_map(functools.partial(_forward, way=way), out_specs=spec(*ACTIVATION))(xs, kernels)
    return y, (xs, kernels)


def _contract_backward(way, saved, dy):
    cuts = jax.tree.map(lambda array: jax.typeof(array).sharding.spec, saved)
    return jax.shard_map(functools.partial(_backward, way=way), out_specs=cuts)(*saved, dy)


_contract.defvjp(_contract_forward, _contract_backward)


def _forward(xs, kernels, way):
    """y = sum x W, of one device's parts."""
    pairs = [(x, _whole(kernel, x.dtype, way)) for x, kernel in zip(xs, kernels, strict=True)]
    if way.gather:
        arriving = ((_arrive(x, way.along, way.dim, ring=way.ring), kernel) for x, kernel in pairs)
        return _sum(
            _product(chunk, _part(kernel, owner, way.along, 0), way.dim)
            for chunks, kernel in arriving
            for owner, chunk in chunks
        )

    def term(owner):
        return _sum(_product(x, _part(kernel, owner, way.along, 1), way.dim) for x, kernel in pairs)

    return _deliver(term, way.along, way.dim, ring=way.ring)


def _backward(xs, kernels, dy, way):
    """dx = dy W^T by the transposed schedule, then dW = x^T dy from what has arrived, as one product each."""
    if lax.axis_size(way.across) > 1:
        # gather them again: no device keeps whole kernels from forward to backward. Tied to x, which is there since
        # the forward pass, they wait for nothing; tied to dy they would be gathered only when they are needed
        kernels, xs = lax.optimization_barrier((kernels, xs))
    wholes = [_whole(kernel, dy.dtype, way) for kernel in kernels]
    if way.gather:

        def term(whole, owner):
            return _product(dy, _part(whole, owner, way.along, 0), way.dim, transposed=True)

        dxs = [_deliver(functools.partial(term, whole), way.along, way.dim, ring=way.ring) for whole in wholes]
        # waits for nothing, as the kernels
        xs = [lax.all_gather(x, way.along, axis=way.dim, tiled=True) for x in xs]
    else:
        chunks = list(_arrive(dy, way.along, way.dim, ring=way.ring))
        dxs = [
            _sum(
                _product(chunk, _part(whole, owner, way.along, 1), way.dim, transposed=True) for owner, chunk in chunks
            )
            for whole in wholes
        ]
        dy = _in_order([chunk for _, chunk in chunks], way.along, way.dim)

    def kernel_term(x, owner):
        if way.gather:
            return _outer(_part(x, owner, way.across, way.dim), dy, way.dim)
        return _outer(x, _part(dy, owner, way.across, way.dim), way.dim)

    def kernel_gradient(x, kernel):
        part = _deliver(functools.partial(kernel_term, x), way.across, 0 if way.gather else 1, ring=way.ring)
        return lax.psum(part.astype(kernel.dtype), LOGICAL_AXES["batch"])

    return tuple(dxs), tuple(map(kernel_gradient, xs, kernels))


def _whole(kernel, dtype, way):
    """The kernel in the compute dtype, gathered over the axis that is not contracted."""
    dim = 0 if way.gather else 1
    chunks = [chunk for _, chunk in _arrive(kernel.astype(dtype), way.across, dim, ring=way.ring)]
    return _in_order(chunks, way.across, dim)


def _arrive(x, axis: str, dim: int, *, ring: bool) -> Iterator[tuple[Array | None, Array]]:
    """Yields (owner, chunk) for every device's part of x along a mesh axis, the own one first; or (None, all of x)."""
    if not ring:
        yield None, lax.all_gather(x, axis, axis=dim, tiled=True)
        return
    devices, me = lax.axis_size(axis), lax.axis_index(axis)
    for k in range(devices):
        yield (me + k) % devices, _shift(x, axis, -k)


def _deliver(term: Callable[[Array | None], Array], axis: str, dim: int, *, ring: bool) -> Array:
    """This device's part of the sum over a mesh axis of term(owner), the own term last, under the others' travel."""
    if not ring:
        return lax.psum_scatter(term(None), axis, scatter_dimension=dim, tiled=True)
    devices, me = lax.axis_size(axis), lax.axis_index(axis)
    return _sum(_shift(term((me + k) % devices), axis, k) for k in reversed(range(devices)))


def _shift(x, axis, by):
    """Sends x to the device `by` places on along a mesh axis."""
    devices = lax.axis_size(axis)
    return x if by == 0 else lax.ppermute(x, axis, [(device, (device + by) % devices) for device in range(devices)])


def _sum(terms: Iterable[Array]) -> Array:
    """The sum of a few arrays, in float32 at least, in their dtype."""
    terms = list(terms)
    wide = jnp.promote_types(terms[0].dtype, jnp.float32)
    return functools.reduce(jnp.add, [term.astype(wide) for term in terms]).astype(terms[0].dtype)


def _part(x, owner, axis, dim):
    """The part of a dimension that `owner` holds along a mesh axis; all of it where owner is None."""
    if owner is None:
        return x
    size = x.shape[dim] // lax.axis_size(axis)
    return lax.dynamic_slice_in_dim(x, owner * size, size, dim)


def _in_order(chunks, axis, dim):
    """Chunks as they arrived, the own one first, put together in the order of their owners; in one pass over memory."""
    if len(chunks) == 1:
        return chunks[0]
    size, devices = chunks[0].shape[dim], len(chunks)
    start = (devices - lax.axis_index(axis)) % devices * size
    return lax.dynamic_slice_in_dim(jnp.concatenate(chunks + chunks, dim), start, devices * size, dim)


# The three products. The operand whose free dimension comes first in the result stands first, so that none needs a
# transpose: tokens [o, d] = kernel[i, o]^T x[i, d], channels [t, o] = x[t, i] kernel[i, o].


def _product(x, kernel, dim, *, transposed=False):
    """x W over dimension `dim` of x, or x W^T."""
    x, contracted = with_layout_constraint(x, TOKEN_MAJOR), 1 if transposed else 0
    if dim == 1:
        y = jnp.moveaxis(lax.dot_general(kernel, x, (((contracted,), (1,)), ((), ()))), 0, 1)
    else:
        y = lax.dot_general(x, kernel, (((2,), (contracted,)), ((), ())))
    return with_layout_constraint(y, TOKEN_MAJOR)


def _outer(x, dy, dim):
    """x^T dy: [i, o] from [.., i, ..] and [.., o, ..], summed over the batch and the dimension that is not mixed."""
    free = (0, 3 - dim)
    return lax.dot_general(x, dy, ((free, free), ((), ())))
