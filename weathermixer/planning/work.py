"""Parameters and products of the model, from its sizes alone (Jigsaw, section 4)."""

import dataclasses
from typing import Protocol, runtime_checkable


@runtime_checkable
class Shape(Protocol):
    """The sizes that formulae need; weathermixer.model.ModelShape is one."""

    grid: tuple[int, int]
    channels: int
    predicted: int
    patch: tuple[int, int]
    embed: int
    token_hidden: int
    embed_hidden: int
    blocks: int
    head: str
    history: int
    tokens: int
    features: int
    circulant: int
    conditions: int
    cuts: dict[str, tuple[str, int]]


@dataclasses.dataclass(frozen=True)
class Contraction:
    """One product y[o, r] = sum_i kernel[i, o] x[i, r] of one sample, and how many of its kind the model has.

    `over` names what is contracted: "token" over the mesh's domain axis, "channel" over its tensor axis. `rows` is the
    size of the activation's other dimension. `in_block` products are repeated by the latent rollout.
    `needs_input_gradient` is False where the input is data. The inputs may be those of several activations with a
    kernel each, `operands`, whose products are summed.
    """

    name: str
    over: str
    inputs: int
    outputs: int
    rows: int
    count: int = 1
    in_block: bool = False
    needs_input_gradient: bool = True
    operands: int = 1

    @property
    def flops(self) -> int:
        """2 inputs outputs rows."""
        return 2 * self.inputs * self.outputs * self.rows

    @property
    def kernel(self) -> int:
        """Numbers in the kernel."""
        return self.inputs * self.outputs

    @property
    def result(self) -> int:
        """Numbers in the product of one sample."""
        return self.outputs * self.rows


def contractions(shape: Shape) -> tuple[Contraction, ...]:
    """The model's products in order: encode, token and channel mixing of the blocks, decode, and the head's."""
    s, lat_lon = shape, shape.grid[0] * shape.grid[1]
    products = [
        Contraction("encode", "channel", s.history * s.features, s.embed, s.tokens, 1, False, False, s.history),
        Contraction("token up", "token", s.tokens, s.token_hidden, s.embed, s.blocks, in_block=True),
        Contraction("token down", "token", s.token_hidden, s.tokens, s.embed, s.blocks, in_block=True),
        Contraction("channel up", "channel", s.embed, s.embed_hidden, s.tokens, s.blocks, in_block=True),
        Contraction("channel down", "channel", s.embed_hidden, s.embed, s.tokens, s.blocks, in_block=True),
        # of the state after the blocks and of the encoded one, in one contraction
        Contraction("decode", "channel", 2 * s.embed, s.features, s.tokens, operands=2),
    ]
    if s.head == "blend":  # in float32, on every grid point
        products.append(Contraction("blend", "channel", 2 * s.channels, s.channels, lat_lon))
    return tuple(products)


def forward_flops(shape: Shape, *, batch: int = 1, repeats: int = 1) -> int:
    """FLOPs of the matrix products of one forward pass over `batch` samples, elementwise work not counted.

        2 T [history D F + k blocks (2 H D + 2 D Dh) + 2 D F] + 2 lat lon (2 C) C

    with F = C * patch points and k = `repeats` passes through the blocks (Jigsaw, section 4): 13.57e12 at the published
    size.
    """
    return batch * sum(c.flops * c.count * (repeats if c.in_block else 1) for c in contractions(shape))


def train_flops(shape: Shape, *, batch: int = 1, repeats: int = 1) -> int:
    """FLOPs of a training step by convention, three forward passes; what rematerialization repeats is not counted."""
    return 3 * forward_flops(shape, batch=batch, repeats=repeats)


def block_kernels(shape: Shape) -> list[tuple[int, int, int]]:
    """(contracted, produced, how many) of the blocks' kernels; of circulant ones each row has an offset's columns."""
    columns = {"token": max(shape.circulant, 1), "channel": 1}
    return [(c.inputs, c.outputs // columns[c.over], c.count) for c in contractions(shape) if c.in_block]


def muon_flops(shape: Shape) -> int:
    """FLOPs of Muon's five steps of Newton and Schulz, 4 s^2 l + 2 s^3 for a kernel of sizes s <= l."""
    sizes = [(min(i, o), max(i, o), count) for i, o, count in block_kernels(shape)]
    return sum(5 * count * (4 * s**2 * long + 2 * s**3) for s, long, count in sizes)


def parameter_parts(shape: Shape) -> dict[str, int]:
    """Numbers of parameters by part of the model: kernels, biases, the norms' scales and biases."""
    s, columns = shape, max(shape.circulant, 1)  # of offsets, a circulant kernel has one value for all columns
    kernels = {c.name: c.kernel * c.count for c in contractions(shape)}
    norm = 2 * s.embed * (1 + s.conditions)
    token_vectors = s.blocks * (norm + (s.token_hidden + s.tokens) // columns)
    channel_vectors = s.blocks * (norm + s.embed_hidden + s.embed)
    parts = {
        "encode": kernels["encode"] + s.embed,
        "token mixing": (kernels["token up"] + kernels["token down"]) // columns + token_vectors,
        "channel mixing": kernels["channel up"] + kernels["channel down"] + channel_vectors,
        "decode": kernels["decode"] + norm + s.features,
    }
    if "blend" in kernels:  # norms of the decoded state and of both states, and one bias
        parts["blend"] = kernels["blend"] + (2 + 4 + 1) * s.channels
    return parts


def parameters(shape: Shape) -> int:
    """Number of parameters."""
    return sum(parameter_parts(shape).values())
