"""The model's products, one description of each: parameters, work, traffic and memory follow (Jigsaw, section 4)."""

import dataclasses

from weathermixer.model.shape import ModelShape

FLOAT32, STORED = 4, 2  # bytes of a number: of parameters and sums; in the archive


@dataclasses.dataclass(frozen=True)
class Contraction:
    """One product y[o, r] = sum_i kernel[i, o] x[i, r] of one sample, and how many of its kind the model has."""

    name: str
    over: str  # what is contracted: "token" over the mesh's domain axis, "channel" over its tensor axis
    inputs: int
    outputs: int
    rows: int  # the size of the activation's other dimension
    count: int = 1
    in_block: bool = False  # such products are repeated by the latent rollout
    needs_input_gradient: bool = True  # False where the input is data
    operands: int = 1  # activations with a kernel each, whose products are summed
    columns: int = 1  # of a circulant kernel, whose parameters are one value for so many outputs

    @property
    def flops(self) -> int:
        return 2 * self.inputs * self.outputs * self.rows

    @property
    def kernel(self) -> int:
        """Numbers in the kernel, as it is multiplied."""
        return self.inputs * self.outputs


def contractions(shape: ModelShape) -> tuple[Contraction, ...]:
    """The model's products in order: encode, token and channel mixing of the blocks, decode, and the head's."""
    s, lat_lon = shape, shape.grid[0] * shape.grid[1]
    in_block = dict(count=s.blocks, in_block=True)
    columns = max(s.circulant, 1)
    products = [
        Contraction(
            "encode", "channel", s.history * s.features, s.embed, s.tokens,
            needs_input_gradient=False, operands=s.history,
        ),
        Contraction("token up", "token", s.tokens, s.token_hidden, s.embed, **in_block, columns=columns),
        Contraction("token down", "token", s.token_hidden, s.tokens, s.embed, **in_block, columns=columns),
        Contraction("channel up", "channel", s.embed, s.embed_hidden, s.tokens, **in_block),
        Contraction("channel down", "channel", s.embed_hidden, s.embed, s.tokens, **in_block),
        # of the state after the blocks and of the encoded one, in one contraction
        Contraction("decode", "channel", 2 * s.embed, s.features, s.tokens, operands=2),
    ]  # fmt: skip
    if s.head == "blend":  # in float32, on every grid point
        products.append(Contraction("blend", "channel", 2 * s.channels, s.channels, lat_lon))
    return tuple(products)


def forward_flops(shape: ModelShape, *, batch: int = 1, repeats: int = 1) -> int:
    """FLOPs of the matrix products of one forward pass over `batch` samples, elementwise work not counted.

        2 T [history D F + k blocks (2 H D + 2 D Dh) + 2 D F] + 2 lat lon (2 C) C

    with F = C * patch points and k = `repeats` passes through the blocks: 13.57e12 at the published size.
    """
    return batch * sum(c.flops * c.count * (repeats if c.in_block else 1) for c in contractions(shape))


def train_flops(shape: ModelShape, *, batch: int = 1, repeats: int = 1) -> int:
    """FLOPs of a training step by convention, three forward passes; what rematerialization repeats is not counted."""
    return 3 * forward_flops(shape, batch=batch, repeats=repeats)


def block_kernels(shape: ModelShape) -> list[tuple[int, int, int]]:
    """(contracted, produced, how many) of the blocks' kernels; of circulant ones each row has an offset's columns."""
    return [(c.inputs, c.outputs // c.columns, c.count) for c in contractions(shape) if c.in_block]


def muon_flops(shape: ModelShape) -> int:
    """FLOPs of Muon's five steps of Newton and Schulz, 4 s^2 l + 2 s^3 for a kernel of sizes s <= l."""
    sizes = [(min(i, o), max(i, o), count) for i, o, count in block_kernels(shape)]
    return sum(5 * count * (4 * s**2 * long + 2 * s**3) for s, long, count in sizes)


def block_parameters(shape: ModelShape) -> int:
    """Number of parameters of the blocks: kernels, biases, and two norms' scales and biases in each."""
    layers = sum(c.count * (c.kernel + c.outputs) // c.columns for c in contractions(shape) if c.in_block)
    return layers + 2 * shape.blocks * _norm(shape)


def parameters(shape: ModelShape) -> int:
    """Number of parameters."""
    outside = sum(c.kernel + c.outputs for c in contractions(shape) if not c.in_block)
    head_norms = 6 * shape.channels if shape.head == "blend" else 0  # of the decoded state and of both states
    return block_parameters(shape) + outside + _norm(shape) + head_norms


def _norm(shape):
    return 2 * shape.embed * (1 + shape.conditions)
