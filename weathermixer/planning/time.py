"""Predicted duration of a training step: products, elementwise passes, optimizer, and what cannot hide behind them.

From the shares of the machine's peaks that timed steps (MEASURED) reached (hardware.py): an estimate, to rank meshes.
"""

import dataclasses
from typing import NamedTuple

from weathermixer.model.shape import ModelShape
from weathermixer.planning.hardware import Hardware
from weathermixer.planning.meshes import Layout, StepOptions, kept_parameters
from weathermixer.planning.traffic import Transfer, read_bytes, step_transfers
from weathermixer.planning.work import FLOAT32, contractions, muon_flops, train_flops

# Passes over memory that fusions make of a step's elementwise work, counted in the mixer's equations as (forward,
# backward), by what an MLP's products read. Its activation: norm 2 and residual 3; both 4 and bias 1. Its hidden layer:
# GELU 2; GELU 3 and bias 1.
PASSES = {"up": (5, 5), "down": (2, 4)}
# Bytes read and written to make an operand of a float32 number of a kernel: in 8 bits two, after the largest was found
CAST = {"float32": 0, "bfloat16": 4 + 2, "fp8": 4 + 4 + 2}
GRID_PASSES = {"blend": 18, "increment": 12}  # of float32: standardize, patch, head and loss, forward and backward


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of a training step by part; `hidden` runs under the products, `exposed` adds to the step.

    What products lose to the transfers under them is in exchange_exposed, the gaps between kernels in elementwise.
    """

    products: float
    elementwise: float
    optimizer: float
    exchange_hidden: float
    exchange_exposed: float
    read_hidden: float
    read_exposed: float
    share_of_peak: float

    @property
    def total(self) -> float:
        return self.products + self.elementwise + self.optimizer + self.exchange_exposed + self.read_exposed


def product_seconds(shape: ModelShape, layout: Layout, options: StepOptions, hardware: Hardware) -> dict[str, float]:
    """Seconds that a device spends in the products of each kind of contraction; the head's run in float32."""
    dtype, seconds = options.compute_dtype, {}
    for c in contractions(shape):
        outside = "bfloat16" if dtype == "fp8" else dtype
        rate = hardware.peak("float32" if c.name == "blend" else dtype if c.in_block else outside)
        work = options.passes * options.products(c) * c.flops * options.batch / layout.devices
        seconds[c.name] = work / (rate * hardware.achieved_products)
    return seconds


def elementwise_bytes(shape: ModelShape, layout: Layout, options: StepOptions) -> float:
    """Bytes that a device reads and writes in elementwise passes over activations and fields."""
    forward = 2 if options.rematerialize == "block" else 1
    passes = {half: forward * ahead + back for half, (ahead, back) in PASSES.items()}
    blocks = [c for c in contractions(shape) if c.in_block]
    read = sum(c.count * c.inputs * c.rows * passes[c.name.split()[1]] for c in blocks)
    if options.compute_dtype == "fp8":  # inputs and gradients, read once and written twice
        read += sum(c.count * (forward * c.inputs + c.outputs) * c.rows * 2 for c in blocks)
    grid = GRID_PASSES[shape.head] * shape.channels * shape.grid[0] * shape.grid[1] * FLOAT32
    return options.passes * options.batch * (options.repeats * read * options.compute_bytes + grid) / layout.devices


def optimizer_bytes(shape: ModelShape, layout: Layout, options: StepOptions) -> float:
    """Bytes that a device reads and writes to clip, update (Adam: 7 arrays), average and cast its parameters."""
    own = kept_parameters(shape, layout, options)
    return own * (FLOAT32 * (1 + 5 + 2 * options.ema) + 2 * options.momentum_bytes + CAST[options.compute_dtype])


def transfer_seconds(transfer: Transfer, hardware: Hardware) -> float:
    """Seconds of one transfer: links within and between nodes work at the same time, messages wait for each other."""
    within, between = transfer.split(hardware.node_size)
    links = within / hardware.node_rate, between / hardware.network_rate
    return max(links) / hardware.achieved_links + transfer.messages * hardware.latency_seconds


def exchange_seconds(transfers: list[Transfer], products: dict[str, float], hardware: Hardware) -> tuple[float, float]:
    """Seconds of exchange that run under products, and that do not.

    Ring schedules hide up to (p - 1) / p of their product's time; a plain one waits for its activation; kernels travel
    under what is left of it. An all-reduce over instances waits: on two and four H100 it added all of its own time.
    """
    left, hidden, exposed = dict(products), 0.0, 0.0
    for transfer in transfers:
        seconds, under = transfer_seconds(transfer, hardware), 0.0
        if transfer.under:
            share = 1.0 if ": kernel" in transfer.name else transfer.straight * (1 - 1 / transfer.group.size)
            under = min(seconds, left[transfer.under] * share)
            left[transfer.under] -= under
        hidden, exposed = hidden + under, exposed + seconds - under
    return hidden, exposed


def step_time(shape: ModelShape, layout: Layout, options: StepOptions, hardware: Hardware) -> StepTime:
    """The step's predicted parts; a node's devices share its rate of reading, which hides behind the whole step."""
    by_product = product_seconds(shape, layout, options, hardware)
    products = sum(by_product.values())
    fusions = elementwise_bytes(shape, layout, options) / (hardware.memory_rate * hardware.achieved_elementwise)
    elementwise = fusions + hardware.gap_seconds
    optimizer = optimizer_bytes(shape, layout, options) / (hardware.memory_rate * hardware.achieved_copies)
    if options.muon:
        optimizer += muon_flops(shape) / layout.instance / (hardware.peak("float32") * hardware.achieved_products)
    hidden, waited = exchange_seconds(step_transfers(shape, layout, options), by_product, hardware)
    exposed = waited + hardware.contention * hidden
    busy = products + elementwise + optimizer + exposed
    devices = min(hardware.node_size, layout.devices)
    reading = read_bytes(shape, layout, options, devices=devices) / hardware.read_rate
    total = max(busy, reading)
    work = options.rollout * train_flops(shape, batch=options.batch, repeats=options.repeats) / layout.devices
    return StepTime(
        products=products,
        elementwise=elementwise,
        optimizer=optimizer,
        exchange_hidden=hidden,
        exchange_exposed=exposed,
        read_hidden=min(reading, busy),
        read_exposed=total - busy,
        share_of_peak=work / total / hardware.peak(options.compute_dtype),
    )


class Measured(NamedTuple):
    """A step that was timed: the machine, the mesh, its milliseconds, with what software, and how it was computed.

    On one node, a sample per instance that is made on the devices, float32 state, clipping and Adam, by
    `python -m experiments.benchmark train --mesh=DATA,DOMAIN,TENSOR --config.model.compute_dtype=DTYPE`, with
    `--config.mesh.zero=ZERO`.
    """

    device: str
    layout: Layout
    step_ms: float
    software: str
    compute_dtype: str = "bfloat16"
    zero: str = "none"

    @property
    def options(self) -> StepOptions:
        return StepOptions(batch=self.layout.data, compute_dtype=self.compute_dtype, zero=self.zero)


MODEL, MODEL_SHAPE = "16 TFLOP", ModelShape(embed=4896, embed_hidden=4896)  # of all of them
PEER = "jax 0.11.2, XLA_FLAGS=--xla_gpu_collective_permute_mode=peer"
MEASURED = (
    Measured("h200", Layout(1, 1, 1), 87.8, "jax 0.11.2"),
    Measured("h200", Layout(1, 2, 1), 50.2, "jax 0.11.2"),
    Measured("h200", Layout(1, 2, 1), 48.2, PEER),
    Measured("h200", Layout(1, 1, 2), 54.6, PEER),
    Measured("h200", Layout(2, 1, 1), 101.5, "jax 0.11.2"),
    Measured("h100", Layout(1, 2, 1), 53.1, "jax 0.11.2"),
    # on four H100 of one host, the same day
    Measured("h100", Layout(1, 4, 1), 29.3, PEER),
    Measured("h100", Layout(1, 2, 2), 32.5, PEER),
    Measured("h100", Layout(1, 1, 4), 43.4, PEER),
    Measured("h100", Layout(2, 2, 1), 56.9, PEER),
    Measured("h100", Layout(4, 1, 1), 111.7, "jax 0.11.2"),
    # on two H100 of one host, in one call
    Measured("h100", Layout(1, 1, 1), 92.0, PEER),
    Measured("h100", Layout(1, 2, 1), 50.7, PEER),
    Measured("h100", Layout(1, 1, 2), 57.9, PEER),
    Measured("h100", Layout(2, 1, 1), 108.3, PEER),
    Measured("h100", Layout(2, 1, 1), 94.4, PEER, zero="parameters"),
    Measured("h100", Layout(1, 1, 1), 67.6, PEER, "fp8"),
    Measured("h100", Layout(1, 2, 1), 40.9, PEER, "fp8"),
    Measured("h100", Layout(1, 1, 2), 45.5, PEER, "fp8"),
    Measured("h100", Layout(2, 1, 1), 83.7, PEER, "fp8"),
    Measured("h100", Layout(2, 1, 1), 69.1, PEER, "fp8", zero="parameters"),
)
