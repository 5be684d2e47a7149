"""Matrices in 8-bit floats: a scale for each, and both orders in memory, as products of either dimension want them.

A product of 8-bit floats runs at twice the rate of one in bfloat16, and wants the contracted dimension innermost in
both operands. A forward pass and its two gradients contract either dimension of every operand, so each is written
twice, by one pass over memory. The scale is the power of two that brings the largest magnitude of a device's part to
between 128 and 256 of the format's 448: current, so that nothing is cut off, and exact to multiply with. Each device
has its own, so that none waits for the others; between powers of two only numbers under the format's least differ.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

# 4 bits of exponent and 3 of mantissa, for gradients too: with a scale of their own they use its range as well
FORMAT = jnp.float8_e4m3fn
LARGEST = 8  # exponent: magnitudes are brought below 2**LARGEST
SMALLEST = 2.0**-93  # magnitude of which a unit's inverse is a number too; zeros alone have its unit, under others'
# asked first, the compiler's own generator of products takes those of widened floats, and widens them in memory
COMPILER_OPTIONS = {"xla_gpu_enable_triton_gemm": False}
TILE = (64, 128)  # of a matrix, by a program of 4 warps; H100: 2.3 TB/s, where a copy has 3.0 and XLA's fusion 1.4


def check_device(device: jax.Device) -> None:
    """Raises ValueError for an NVIDIA GPU that has no products of 8-bit floats."""
    capability = getattr(device, "compute_capability", "")
    if device.platform == "gpu" and capability.replace(".", "").isdigit() and float(capability) < 8.9:
        raise ValueError(
            f"compute_dtype='fp8': {device.device_kind} has compute capability {capability}, and products of 8-bit "
            "floats begin with 8.9: choose 'bfloat16'"
        )


class Quantized(NamedTuple):
    """A device's part of a matrix: straight[m, n] * unit, or turned[n, m] * unit."""

    straight: Float[Array, "m n"]
    turned: Float[Array, "n m"]
    unit: Float[Array, "1 1"]

    def in_units(self, unit: Float[Array, "1 1"]) -> "Quantized":
        """The same in a unit that is larger: exact where it is not under the format's least."""
        scale = self.unit / unit
        return Quantized(*((x.astype(jnp.float32) * scale).astype(FORMAT) for x in self[:2]), unit)


Operand = Array | Quantized


def quantize(x: Float[Array, "m n"], *, first: int | None = None) -> Quantized:
    """A device's part of a matrix; what is not finite shows as NaN.

    `first` is the dimension over which the largest magnitude is taken first: where something else is summed over the
    same one, both are one pass.
    """
    largest = jnp.max(jnp.abs(x), axis=first).astype(jnp.float32)
    if first is not None:
        largest = jnp.max(lax.optimization_barrier(largest))
    exponent = jnp.frexp(jnp.maximum(largest, SMALLEST))[1] - LARGEST
    scale, unit = (jnp.ldexp(jnp.float32(1), power) for power in (-exponent, exponent))
    written = lax.platform_dependent(x, scale, cuda=write_fast, default=write)
    return Quantized(*written, jnp.where(jnp.isfinite(largest), unit, jnp.nan).reshape(1, 1))


def write(x: Float[Array, "m n"], scale: Float[Array, ""]) -> tuple[Float[Array, "m n"], Float[Array, "n m"]]:
    """x * scale in 8-bit floats, in both orders: the reference."""
    narrow = (x.astype(jnp.float32) * scale).astype(FORMAT)
    return narrow, narrow.T


def write_fast(x: Float[Array, "m n"], scale: Float[Array, ""], *, interpret: bool = False) -> tuple[Array, Array]:
    """The same by a kernel that reads x once; XLA would turn one into the other, at every product anew."""
    from jax.experimental.pallas import triton  # not where there is no GPU: it is a backend of its own

    grid = tuple(pl.cdiv(size, tile) for size, tile in zip(x.shape, TILE, strict=True))
    return pl.pallas_call(
        functools.partial(_write_tile, shape=x.shape, triton=triton),
        out_shape=jax.eval_shape(write, x, scale),
        grid=grid,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
    )(x, scale.reshape(1))


def _write_tile(x, scale, straight, turned, *, shape, triton):
    """One tile of either order; the last ones hang over the edge."""
    first = [pl.program_id(dim) * tile for dim, tile in enumerate(TILE)]
    rows, columns = (pl.ds(start, tile) for start, tile in zip(first, TILE, strict=True))
    inside = [start + jnp.arange(tile) < size for start, tile, size in zip(first, TILE, shape, strict=True)]
    mask = inside[0][:, None] & inside[1][None, :]
    narrow = (triton.load(x.at[rows, columns], mask=mask, other=0).astype(jnp.float32) * scale[0]).astype(FORMAT)
    triton.store(straight.at[rows, columns], narrow, mask=mask)
    triton.store(turned.at[columns, rows], narrow.T, mask=mask.T)


def multiply(a: Operand, b: Operand, dims: tuple[int, int], dtype: jnp.dtype) -> Float[Array, "i o"]:
    """The product of two matrices over a dimension of each; in 8-bit floats summed in float32, rounded to `dtype`.

    Widening and scaling are exact, and a GPU's compiler leaves them out: its product of 8-bit floats is told the units.
    """
    if not isinstance(a, Quantized):
        return lax.dot_general(a, b, (((dims[0],), (dims[1],)), ((), ())))
    first, second = (
        (x.straight if dim else x.turned).astype(dtype) * x.unit.reshape(()).astype(dtype)
        for x, dim in zip((a, b), dims, strict=True)
    )
    return lax.dot_general(first, second, (((1,), (1,)), ((), ())), preferred_element_type=dtype)
