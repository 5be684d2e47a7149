"""What other ways of spreading the same training step over devices exchange, hold and compute, per device.

Each follows its paper's description, in the same dtypes and by the same count of bytes received as ours (traffic.py):

    published   Jigsaw's own scheme on 1, 2 (channels) or 4 (2 x 2) devices; on 4 two devices do twice the others' work
    Megatron    every MLP's first kernel cut by columns, its second by rows, activations whole on every device
    FSDP        whole samples per device, parameters and all that belongs to them cut over all devices and gathered
                for the forward and the backward pass (ZeRO, stage 3)

and the least that any 2-D distribution of the products' operands can exchange.
"""

import dataclasses
import math

from weathermixer.model.shape import ModelShape
from weathermixer.planning.memory import activation_bytes, memory_parts, temporary_bytes
from weathermixer.planning.meshes import Layout, StepOptions, executed_flops, misfits
from weathermixer.planning.traffic import step_transfers
from weathermixer.planning.work import FLOAT32, contractions, parameters

PUBLISHED = {1: Layout(1, 1, 1), 2: Layout(1, 1, 2), 4: Layout(1, 2, 2)}
PUBLISHED_IMBALANCE = {1: 1.0, 2: 1.0, 4: 4 / 3}  # work of the busiest device over the mean


@dataclasses.dataclass(frozen=True)
class Share:
    """One device's share of a training step: bytes received, bytes held, FLOPs of products, on the busiest device."""

    received: float
    held: float
    flops: float


def ours(shape: ModelShape, layout: Layout, options: StepOptions) -> Share | None:
    """The share of a device of our mesh, channels padded by at most a half; None where it does not divide the model."""
    for channels in range(shape.channels, shape.channels * 3 // 2 + 1, 8):
        padded = dataclasses.replace(shape, channels=channels)
        if not misfits(padded, layout, layout.data):
            return Share(
                received=float(sum(transfer.bytes for transfer in step_transfers(padded, layout, options))),
                held=sum(memory_parts(padded, layout, options).values()),
                flops=executed_flops(padded, options) / layout.devices,
            )
    return None


# The others know one model axis: of a mesh (instances, 1, ways); None where it is another, or one they have no way for.


def published(shape: ModelShape, layout: Layout, options: StepOptions) -> Share | None:
    """Jigsaw's scheme on 1, 2 or 4 devices to an instance: partial products travel, as in our scatter form."""
    ways = layout.tensor
    if layout.domain > 1 or ways not in PUBLISHED:
        return None
    layout = dataclasses.replace(PUBLISHED[ways], data=layout.data)
    share = ours(shape, layout, dataclasses.replace(options, schedule="scatter"))
    return dataclasses.replace(share, flops=share.flops * PUBLISHED_IMBALANCE[ways])


def megatron(shape: ModelShape, layout: Layout, options: StepOptions) -> Share | None:
    """Tensor parallelism over the instance's devices (Shoeybi et al. 2019): an all-reduce per MLP each way.

    Encode's result and decode's are gathered, decode's two input gradients all-reduced; the head works on whole fields.
    """
    s, ways, instances = shape, layout.tensor, layout.data
    if layout.domain > 1 or s.token_hidden % ways or s.embed_hidden % ways:
        return None
    item, batch = options.compute_bytes, options.batch / instances
    state, part = s.tokens * s.embed, (ways - 1) / ways
    reductions = 2 * s.blocks * options.repeats * (3 if options.rematerialize == "block" else 2)
    moved = 2 * part * (reductions + 2) * state + part * (state + s.tokens * s.features)
    own = parameters(s) * FLOAT32 / ways
    gradients = 2 * (instances - 1) / instances * own
    whole = Layout(1, 1, 1)
    one = dataclasses.replace(options, batch=1)
    # hidden layers are cut, all else is not
    hidden = 2 * (s.token_hidden * s.embed + s.tokens * s.embed_hidden) * item * s.blocks * options.repeats
    kept = activation_bytes(s, one) - (0 if options.rematerialize == "block" else hidden * part)
    passing = temporary_bytes(s, whole, one) * (batch if ways == 1 else batch / 2)
    head = sum(3 * c.flops for c in contractions(s) if c.name == "blend")
    flops = executed_flops(s, one)
    return Share(
        received=moved * batch * item + gradients,
        held=own * (4 + options.ema) + batch * kept + passing,
        flops=batch * ((flops - head) / ways + head),
    )


def fsdp(shape: ModelShape, layout: Layout, options: StepOptions) -> Share | None:
    """Whole samples on every device, all that training carries cut over all of them (Rajbhandari et al. 2020).

    Arrays are flattened and padded first, so that all can be cut; a whole copy in the compute dtype is in passing.
    """
    if layout.instance > 1:
        return None
    devices, item = layout.devices, options.compute_bytes
    number, part = parameters(shape), (devices - 1) / devices
    held = memory_parts(shape, layout, options)
    lasting = sum(held[name] for name in ("parameters", "moments", "ema", "gradients")) * part
    flops = executed_flops(shape, options) / devices
    return Share(received=part * number * (2 * item + FLOAT32), held=sum(held.values()) - lasting, flops=flops)


def lower_bound(shape: ModelShape, layout: Layout, options: StepOptions) -> Share:
    """The least bytes that the busiest device can receive for a step's products, however they are distributed.

    A product of sizes m >= n >= k on P devices that begin with an equal share of the operands and end with one of the
    result takes at least

        P <= m/n:  (1 - 1/P) nk       m/n < P <= mn/k^2:  2 sqrt(mn k^2 / P) - (m + n) k / P

    numbers, the second being the 2-D case; beyond it 3 (mnk/P)^(2/3) - (mn + mk + nk) / P (Al Daas et al. 2022, Tight
    Memory-Independent Parallel Matrix Multiplication Communication Lower Bounds). A step has such a product forward and
    two backward; what is gathered may serve both backward ones, but nothing gathered is kept from pass to pass, so that
    one forward and one backward bound hold.
    """
    total, devices = 0.0, layout.devices
    for c in contractions(shape):
        if c.name == "blend":
            continue
        k, n, m = sorted((c.inputs, c.outputs, c.rows * options.batch))
        if devices <= m / n:
            numbers = (1 - 1 / devices) * n * k
        elif devices <= m * n / k**2:
            numbers = 2 * math.sqrt(m * n * k**2 / devices) - (m + n) * k / devices
        else:
            numbers = 3 * (m * n * k / devices) ** (2 / 3) - (m * n + m * k + n * k) / devices
        total += (2 + options.repeated_in_backward(c)) * options.times(c) * numbers
    return Share(total * options.compute_bytes, 0.0, 0.0)
