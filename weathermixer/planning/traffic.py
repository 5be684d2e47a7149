"""Bytes that devices exchange and read in a training step, transfer by transfer, within a node and between nodes.

What a contraction moves is in weathermixer.parallel.schedule; here it is put on the mesh's axes, with the norms' sums,
the sum of gradients over instances and the reading of samples.
"""

import dataclasses
from collections.abc import Iterator

from weathermixer.model.shape import ModelShape
from weathermixer.parallel.schedule import choose_schedule, in_ring, moves_input
from weathermixer.planning.meshes import Group, Layout, StepOptions, sharing
from weathermixer.planning.work import FLOAT32, STORED, Contraction, contractions


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Bytes that each device of a group receives in one step, and in how many messages one after another.

    `under` names the contraction whose products can hide it, or is "" for what everybody waits for. `straight`
    transfers go from each device to every other one of the group, the others around a ring.
    """

    name: str
    group: Group
    bytes: float | int
    messages: int
    under: str = ""
    straight: bool = False

    def split(self, node_size: int) -> tuple[float, float]:
        """Bytes that a device receives, on average, from within its node and from other nodes.

        With m of the group's p members in a node, p - m of the p - 1 others are elsewhere; of a ring's links one in m.
        """
        members, size = self.group.in_node(node_size), self.group.size
        if members == size:
            return float(self.bytes), 0.0
        between = self.bytes * ((size - members) / (size - 1) if self.straight else 1 / members)
        return self.bytes - between, between


def gathered_bytes(group: Group, whole: float | int) -> float:
    """Bytes a device receives when `whole` bytes are gathered over a group, or summed and cut: (p - 1) / p of them."""
    return (group.size - 1) / group.size * whole


def exchanged_within(c: Contraction, layout: Layout, options: StepOptions) -> bool:
    """Whether instances exchange chunks of its kernel within such a contraction; circulant ones are dense by then."""
    return c.columns == 1 and in_ring(options.schedule, layout.data) and sharing(c, layout, options) > 1


def contraction_transfers(c: Contraction, layout: Layout, options: StepOptions) -> list[Transfer]:
    """The transfers of one kind of contraction in a training step: its repetitions, backward passes, recomputation.

    How often what travels is the table of weathermixer.parallel.schedule: x, dy and W as operands of products, y, dx
    and dW as sums.
    """
    along, across = layout.contracted(c.over), layout.across(c.over)
    schedule = choose_schedule(options.schedule, c.inputs, c.outputs, along=along.size)
    gather, wide = moves_input(schedule), options.compute_bytes
    narrow = options.operand_bytes if c.in_block else wide
    rows = c.rows * options.batch // layout.data
    chunk = (along.size - 1) * rows * (c.inputs if gather else c.outputs) // layout.instance
    again = options.repeated_in_backward(c)
    if gather:  # x forward, x for dW and the sum of dx, which is not made where x is data
        moved = chunk * ((2 + again) * narrow + c.needs_input_gradient * wide)
        messages = (2 + c.needs_input_gradient) * c.operands + again
    else:  # the sum of y forward, dy for both gradients
        moved, messages = chunk * ((1 + again) * wide + narrow), 2 + again
    # W once for all repetitions of the forward pass, for the compiler finds that it is the same; W for dx, and dW
    repeats, gathers = options.repeats if c.in_block else 1, c.needs_input_gradient + again
    kernel, sent_kernels = repeats * (gathers * narrow + wide) + narrow, c.operands * (repeats * (1 + gathers) + 1)
    times = c.count * repeats
    straight = schedule.startswith("ring")
    sent = times * messages * (along.size - 1)
    transfers = [Transfer(f"{c.name}: activation", along, times * moved, sent, c.name, straight)]
    kernels = [(f"{c.name}: kernel", across, (across.size - 1) * c.kernel // layout.instance)]
    if exchanged_within(c, layout, options):  # as often as across
        group = layout.replicas
        kernels.append((f"{c.name}: kernel over data", group, gathered_bytes(group, c.kernel / layout.instance)))
    for name, group, size in kernels:
        messages = c.count * sent_kernels * (group.size - 1)
        transfers.append(Transfer(name, group, c.count * size * kernel, messages, c.name))
    return transfers


def head_transfers(c: Contraction, layout: Layout, options: StepOptions) -> list[Transfer]:
    """The blend's, per grid point: two products summed over channels and cut in float32, their gradient gathered."""
    group = layout.contracted(c.over)
    whole = c.outputs * c.rows * options.batch / layout.data / layout.domain
    moved = gathered_bytes(group, whole * (2 * FLOAT32 + options.compute_bytes))
    return [Transfer("head", group, moved, 3 * (group.size - 1))]


def norm_transfers(shape: ModelShape, layout: Layout, options: StepOptions) -> Iterator[Transfer]:
    """Sums over channels of the norms' statistics, all-reduces of one float32 a row: two forward, two backward.

    The blend's two norms have a row for every grid point.
    """
    group = layout.contracted("channel")
    in_blocks = 2 * shape.blocks * options.repeats * (6 if options.rematerialize == "block" else 4)
    points = shape.grid[0] * shape.grid[1] if shape.head == "blend" else 0
    for name, sums, rows in (("norms", in_blocks + 4, shape.tokens), ("head's norms", 8, points)):
        moved = sums * rows / layout.domain * options.batch / layout.data * FLOAT32
        yield Transfer(name, group, 2 * gathered_bytes(group, moved), 2 * sums * (group.size - 1))


def block_uses(options: StepOptions) -> int:
    """How often a parameter of a block is gathered: once, and again for every block that is rematerialized."""
    return 1 + options.repeats * (options.rematerialize == "block")


def vector_transfers(shape: ModelShape, layout: Layout, options: StepOptions) -> Iterator[Transfer]:
    """Biases and norms' scales, cut over both model axes: gathered over one for use, their gradients summed over it.

    In float32, and over instances as they are used, once for each repetition; with ZeRO gathered over them too.
    The head's parameters are whole over `domain` and only summed.
    """
    uses, sums = block_uses(options), 2 * options.repeats
    bands, groups, replicas = layout.contracted("token"), layout.contracted("channel"), layout.replicas
    biases = {"token": 0, "channel": 4 * shape.embed * shape.blocks, "outside": 2 * shape.embed, "head": 0}
    for c in contractions(shape):
        if c.name == "blend":
            biases["head"] += c.kernel + 7 * c.outputs
        else:
            biases[c.over if c.in_block else "outside"] += c.count * c.outputs
    token = biases.pop("token") / bands.size
    embed, outside, head = (numbers / groups.size for numbers in biases.values())
    parts = uses * (token / groups.size + embed / bands.size) + outside / bands.size
    shared = parts if options.zero == "parameters" else 0
    moved = {
        bands: gathered_bytes(bands, (uses + sums) * embed + 3 * outside + 2 * head),
        groups: gathered_bytes(groups, (uses + sums) * token),
        replicas: gathered_bytes(replicas, sums * (token + embed) + 2 * (outside + head) + shared),
    }
    return (Transfer("vectors", group, FLOAT32 * numbers, group.size - 1) for group, numbers in moved.items())


def gradient_transfers(shape: ModelShape, layout: Layout, options: StepOptions) -> Iterator[Transfer]:
    """Sums of kernels' float32 gradients over instances, and kernels gathered over them, where contractions do neither.

    All-reduces once for each repetition of a block, for each part of the batch and step of a rollout; where such a step
    is made again, nothing is summed again. Of kernels that many instances share the sums are cut, and kernels gathered
    in float32 for every use. Of circulant ones, which are made dense in between, the dense gradient is summed whole.
    """
    group, times = layout.replicas, options.rollout * options.accumulate
    whole = gathered_bytes(group, FLOAT32 / layout.instance)
    summed = gathered = 0.0
    for c in contractions(shape):
        if c.name != "blend" and not exchanged_within(c, layout, options):
            shared = sharing(c, layout, options) > 1
            summed += options.times(c) * c.kernel * (1 if shared and c.columns == 1 else 2)
            gathered += shared * c.count * c.kernel // c.columns * (block_uses(options) if c.in_block else 1)
    yield Transfer("gradients over data", group, times * whole * summed, 2 * times * (group.size - 1))
    times = options.passes * options.accumulate
    yield Transfer("parameters over data", group, times * whole * gathered, round(2 * times * (group.size - 1)))


def step_transfers(shape: ModelShape, layout: Layout, options: StepOptions) -> list[Transfer]:
    """Every transfer of a training step on this mesh that moves something."""
    times = options.passes * options.accumulate
    part = dataclasses.replace(options, batch=options.part, accumulate=1)
    transfers = []
    for c in contractions(shape):
        transfers += (head_transfers if c.name == "blend" else contraction_transfers)(c, layout, part)
    transfers += [*norm_transfers(shape, layout, part), *vector_transfers(shape, layout, part)]
    grown = [dataclasses.replace(t, bytes=times * t.bytes, messages=round(times * t.messages)) for t in transfers]
    return [transfer for transfer in (*grown, *gradient_transfers(shape, layout, options)) if transfer.bytes]


def read_bytes(shape: ModelShape, layout: Layout, options: StepOptions, *, devices: int = 1) -> float:
    """Bytes that a process with `devices` devices reads from the archive per step.

    Each device's box of each frame: (channels / tensor) x (lat / domain) x lon, of batch / data samples; no two
    devices' boxes are the same. Static fields and padding are not in the archive.
    """
    lat, lon = shape.grid
    channels = min(shape.predicted, shape.channels / layout.tensor)
    box = channels * lat / layout.domain * lon
    return devices * box * options.frames * STORED * options.batch / layout.data
