"""The distributed contraction: one function mixes over channels or over tokens, on any mesh.

An activation [batch, token, embed] is cut over both model axes. Mixing channels contracts its last dimension over
`tensor`, mixing tokens its middle one over `domain`: the same operation with the axes' roles swapped, without a
transpose (Jigsaw, section 3). Below, `along` is the mesh axis that is contracted and `across` the other one.

Along the contracted axis either x is gathered or the partial products of y are scattered (rings.py); in the ring forms
a chunk travels while another is multiplied. Kernels are gathered across the other axis in the same chunks; they wait
for nothing, so they travel under the products before. What moves, in bytes: schedule.py.

A kernel may be cut over the instances too (zero.py): then it is gathered over them as across the other axis, and its
gradient is summed over them chunk by chunk, each instance its own part, under the products that follow.

One file: the backward pass is the forward one transposed, and either is read beside the other.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec, reshard
from jaxtyping import Array, Float

from weathermixer.parallel.fp8 import Quantized, multiply, quantize
from weathermixer.parallel.mesh import AXES, LOGICAL_AXES, axes_of, instances, spec, without
from weathermixer.parallel.rings import add, arrive, deliver, gather, in_order, part
from weathermixer.parallel.schedule import SCHEDULES, Over, Schedule, in_ring, kernel_names, moves_input
from weathermixer.parallel.zero import OVER, gather_instances

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
    fp8: bool = False,
) -> Float[Array, "b t2 d2"]:
    """Contracts an activation with a kernel over its channels or over its tokens.

        over="channel":  y[b, t, o] = sum_i x[b, t, i] kernel[i, o]
        over="token":    y[b, o, d] = sum_i x[b, i, d] kernel[i, o]

    Args:
      x: cut ("batch", "token", "embed"), and so is the result. Of several activations with a kernel each the sum is
        returned: one contraction over all of them, whose result travels once.
      kernel: [contracted, produced], cut as `kernel_names(over, schedule)` says, and one dimension over the instances
        too or not. It is cast to the activation's dtype before it travels; its gradient comes back in its own dtype.
      over: what is mixed.
      schedule: "auto" is the ring form for which the kernel is cut; "einsum" leaves the schedule to the compiler.
      fp8: products, and what travels to them, in 8-bit floats (fp8.py); sums and results as without.

    Raises ValueError where the schedule is unknown or has no fp8 ("einsum"), and where the kernel is not cut for it.

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
    stored = "ring_gather" if without(cuts[0], OVER) == spec(*kernel_names(over, "gather")) else "ring_scatter"
    if schedule == "auto":
        schedule = stored
    names = kernel_names(over, stored if schedule == "einsum" else schedule)
    for cut in cuts:
        if without(cut, OVER) != spec(*names):
            raise ValueError(
                f"kernel cut {cut} does not fit schedule={schedule!r} over {over}s: it is {spec(*names)} for {names}"
            )
        if cut != cuts[0]:
            raise ValueError(f"kernels of one contraction are cut alike, not {cuts[0]} and {cut}: reshard one")
    if schedule == "einsum":
        if fp8:
            raise ValueError("schedule='einsum' has no products in 8-bit floats: choose another schedule, as 'auto'")
        return add(_einsum(x, kernel, over, names) for x, kernel in zip(xs, kernels, strict=True))
    if not in_ring(schedule, instances(jax.sharding.get_abstract_mesh())):
        kernels = gather_instances(kernels)
    return _contract(xs, kernels, Way.of(over, schedule, jax.typeof(kernels[0]).sharding.spec, fp8=fp8))


def _einsum(x, kernel, over, names):
    """The contraction in one line, its schedule left to the compiler: the reference."""
    across = {"channel": "token", "token": "embed"}[over]
    kernel = reshard(kernel.astype(x.dtype), without(spec(*names), LOGICAL_AXES[across]))
    return jnp.einsum(
        {"channel": "bti,io->bto", "token": "bid,io->bod"}[over], x, kernel, out_sharding=spec(*ACTIVATION)
    )


@dataclasses.dataclass(frozen=True)
class Way:
    """How a contraction goes: over which dimension of x's matrix, along and across which mesh axes, what moves, how.

    On a device an activation is a matrix, as it lies in memory: [token, batch * embed] where tokens are mixed, and
    [token * batch, embed] where channels are. `mixed` is the dimension that is contracted, `free` the other one.
    """

    mixed: int
    along: str
    across: str
    kernel_spec: PartitionSpec
    gather: bool
    ring: bool
    fp8: bool

    @classmethod
    def of(cls, over: Over, schedule: Schedule, kernel_spec: PartitionSpec, *, fp8: bool) -> "Way":
        mixed = {"token": 0, "channel": 1}[over]
        along, across = (LOGICAL_AXES[ACTIVATION[1 + d]] for d in (mixed, 1 - mixed))
        gather, ring = moves_input(schedule), schedule.startswith("ring")
        return cls(mixed, along, across, kernel_spec, gather=gather, ring=ring, fp8=fp8)

    @property
    def free(self) -> int:
        return 1 - self.mixed

    @property
    def shared(self) -> int | None:
        """The dimension in which kernels are cut over the instances too."""
        return next((dim for dim, entry in enumerate(self.kernel_spec) if OVER in axes_of(entry)), None)

    @property
    def gathers(self) -> bool:
        """Whether kernels are gathered, or chunks of x both forward and backward."""
        again = [self.along] * (self.gather and self.fp8) + [OVER] * (self.shared is not None)
        return any(lax.axis_size(axis) > 1 for axis in (self.across, *again))

    @property
    def matrix_spec(self) -> PartitionSpec:
        batch, token, embed = spec(*ACTIVATION)
        return PartitionSpec((token, batch), embed) if self.mixed else PartitionSpec(token, (batch, embed))

    def operand_spec(self, cut: PartitionSpec) -> Any:
        return Quantized(cut, PartitionSpec(cut[1], cut[0]), PartitionSpec(AXES)) if self.fp8 else cut


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _contract(xs, kernels, way):
    return _contract_forward(xs, kernels, way)[0]


def _contract_forward(xs, kernels, way):
    cuts = tuple((way.operand_spec(cut),) * len(xs) for cut in (way.matrix_spec, way.kernel_spec))
    forward = functools.partial(_forward, way=way)
    y, (narrow, kernels) = jax.shard_map(forward, out_specs=(spec(*ACTIVATION), cuts))(xs, kernels)
    return y, (narrow if way.fp8 else xs, kernels)


def _contract_backward(way, saved, dy):
    cuts = tuple((cut,) * len(saved[0]) for cut in (spec(*ACTIVATION), way.kernel_spec))
    return jax.shard_map(functools.partial(_backward, way=way), out_specs=cuts)(*saved, dy)


_contract.defvjp(_contract_forward, _contract_backward)


def _forward(xs, kernels, way):
    """y = sum x W, of one device's parts; and what the backward pass starts from, x and W as operands of products."""
    batch, dtype = xs[0].shape[0], xs[0].dtype
    xs = tuple(_operand(_matrix(x, way), dtype, way) for x in xs)
    kernels = tuple(_operand(kernel, dtype, way) for kernel in kernels)
    pairs = [(x, _whole(kernel, way)) for x, kernel in zip(xs, kernels, strict=True)]
    product = functools.partial(_product, way=way, dtype=dtype)
    if way.gather:
        arriving = ((arrive(x, way.along, way.mixed, ring=way.ring), kernel) for x, kernel in pairs)
        y = add(
            product(chunk, part(kernel, owner, way.along, 0)) for chunks, kernel in arriving for owner, chunk in chunks
        )
    else:

        def term(owner):
            return add(product(x, part(kernel, owner, way.along, 1)) for x, kernel in pairs)

        y = deliver(term, way.along, way.mixed, ring=way.ring)
    return _activation(y, batch, way), (xs, kernels)


def _backward(xs, kernels, dy, way):
    """dx = dy W^T by the transposed schedule, then dW = x^T dy from what has arrived, as one product each."""
    batch, dtype = dy.shape[0], dy.dtype
    if way.gathers:
        # gather them again: no device keeps wholes from forward to backward. Tied to each other, which are there since
        # the forward pass, they wait for nothing; tied to dy they would be gathered only when they are needed
        kernels, xs = lax.optimization_barrier((kernels, xs))
    wholes = [_whole(kernel, way) for kernel in kernels]
    xs = xs if way.fp8 else [_matrix(x, way) for x in xs]
    dy = _operand(_matrix(dy, way), dtype, way, first=way.free)  # as the bias's gradient is summed
    product = functools.partial(_product, way=way, dtype=dtype, transposed=True)
    if way.gather:

        def term(whole, owner):
            return product(dy, part(whole, owner, way.along, 0))

        dxs = [deliver(functools.partial(term, whole), way.along, way.mixed, ring=way.ring) for whole in wholes]
        # waits for nothing, as the kernels, and nothing for a chunk of it: a collective puts it together in no pass of
        # its own, but chunks in 8 bits need one for their units
        xs = [gather(x, way.along, way.mixed, ring=way.ring and way.fp8) for x in xs]
    else:
        chunks = list(arrive(dy, way.along, way.mixed, ring=way.ring))
        dxs = [add(product(chunk, part(whole, owner, way.along, 1)) for owner, chunk in chunks) for whole in wholes]
        dy = in_order([chunk for _, chunk in chunks], way.along, way.mixed)

    def kernel_term(x, owner):
        if way.gather:
            return _outer(part(x, owner, way.across, way.mixed), dy, way, dtype)
        return _outer(x, part(dy, owner, way.across, way.mixed), way, dtype)

    def kernel_gradient(x):
        own = deliver(functools.partial(kernel_term, x), way.across, 0 if way.gather else 1, ring=way.ring)
        if way.shared is None:
            with jax.named_scope("exchange"):
                return lax.psum(own.astype(jnp.float32), OVER)
        return deliver(lambda owner: part(own, owner, OVER, way.shared), OVER, way.shared, ring=True)

    dkernels = tuple(kernel_gradient(x).astype(jnp.float32) for x in xs)
    return tuple(_activation(dx, batch, way) for dx in dxs), dkernels


def _matrix(x, way):
    """A device's part of an activation as a matrix; free, as it lies in memory so."""
    tokens, batch, embed = (x := jnp.moveaxis(with_layout_constraint(x, TOKEN_MAJOR), 1, 0)).shape
    return x.reshape((tokens * batch, embed) if way.mixed else (tokens, batch * embed))


def _activation(y, batch, way):
    """The activation of a matrix."""
    y = y.reshape((-1, batch, y.shape[1]) if way.mixed else (y.shape[0], batch, -1))
    return with_layout_constraint(jnp.moveaxis(y, 0, 1), TOKEN_MAJOR)


def _operand(x, dtype, way, **options):
    """A device's matrix as products want it: quantized, or in the compute dtype."""
    return quantize(x, **options) if way.fp8 else x.astype(dtype)


def _whole(kernel, way):
    """The kernel, gathered over the axis that is not contracted, and over the instances where they share it."""
    if way.shared is not None:
        kernel = gather(kernel, OVER, way.shared, ring=True)
    return gather(kernel, way.across, 0 if way.gather else 1, ring=way.ring)


# The three products. The operand whose free dimension comes first in the result stands first, so that none needs a
# transpose: tokens [o, n] = kernel[i, o]^T x[i, n], channels [n, o] = x[n, i] kernel[i, o].


def _product(x, kernel, *, way, dtype, transposed=False):
    """x W over the mixed dimension of x, or x W^T."""
    contracted = 1 if transposed else 0
    if way.mixed == 0:
        return multiply(kernel, x, (contracted, 0), dtype)
    return multiply(x, kernel, (1, contracted), dtype)


def _outer(x, dy, way, dtype):
    """x^T dy: [i, o] from [i, n] and [o, n], or from [n, i] and [n, o]: summed over the dimension that is not mixed."""
    return multiply(x, dy, (way.free, way.free), dtype)
