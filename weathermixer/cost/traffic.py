"""Bytes that devices exchange and read in a training step, transfer by transfer, within a node and between nodes.

The contractions' bytes are those of weathermixer.schedule; here they are put on the mesh's axes, with the norms' sums,
the sum of gradients over instances and the reading of samples.
"""

import dataclasses

from weathermixer.cost.layout import Group, Layout, StepOptions
from weathermixer.cost.work import Contraction, Shape, contractions, parameters
from weathermixer.schedule import Schedule, choose_schedule, moves_input, traffic

FLOAT32 = 4


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Bytes that each device of a group receives in one step, and in how many messages one after another.

    `under` names the contraction whose products can hide it, "backward" for gradients that travel while earlier ones
    are still computed, or "" for what everybody waits for. `straight` transfers go from each device to every other one
    of the group, the others around a ring.
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


def contraction_schedule(c: Contraction, layout: Layout, options: StepOptions) -> Schedule:
    """The schedule that the model runs this contraction on: its own, or the one chosen from the bytes."""
    return choose_schedule(
        options.schedule,
        rows=c.rows * options.batch // layout.data,
        contracted=c.inputs,
        produced=c.outputs,
        along=layout.contracted(c.over).size,
        across=layout.across(c.over).size,
    )


def contraction_transfers(c: Contraction, layout: Layout, options: StepOptions) -> list[Transfer]:
    """The transfers of one kind of contraction in a training step: its repetitions, backward passes, recomputation."""
    contracted, across = layout.contracted(c.over), layout.across(c.over)
    schedule = contraction_schedule(c, layout, options)
    moved = traffic(
        schedule,
        rows=c.rows * options.batch // layout.data,
        contracted=c.inputs,
        produced=c.outputs,
        along=contracted.size,
        across=across.size,
        itemsize=options.compute_bytes,
    )
    activation = moved.activation_forward + moved.activation_backward
    kernel = moved.kernel_forward + moved.kernel_backward
    messages = 3 if moves_input(schedule) else 2
    kernel_messages = 3
    if not c.needs_input_gradient:  # `gather` then sums no dx, and no schedule gathers the kernel for it
        activation -= moved.activation_forward if moves_input(schedule) else 0
        kernel -= moved.kernel_forward
        messages, kernel_messages = 2, 2
    if options.repeated_in_backward(c):
        activation, kernel = activation + moved.activation_forward, kernel + moved.kernel_forward
        messages, kernel_messages = messages + 1, kernel_messages + 1
    times = c.count * (options.repeats if c.in_block else 1)
    straight = schedule.startswith("ring")
    return [
        Transfer(
            f"{c.name}: activation",
            contracted,
            times * activation,
            times * messages * (contracted.size - 1),
            c.name,
            straight,
        ),
        Transfer(f"{c.name}: kernel", across, times * kernel, times * kernel_messages * (across.size - 1), c.name),
    ]


def head_transfers(c: Contraction, layout: Layout, options: StepOptions) -> list[Transfer]:
    """The blend's: per grid point, in float32, partial sums scattered over channels and gathered backward."""
    group = layout.contracted(c.over)
    whole = c.result * FLOAT32 * options.batch / layout.data / layout.domain
    return [Transfer("blend: activation", group, 2 * gathered_bytes(group, whole), 2 * (group.size - 1))]


def norm_transfers(shape: Shape, layout: Layout, options: StepOptions) -> list[Transfer]:
    """Sums over channels of the norms' statistics, all-reduces of one float32 a row: two forward, two backward."""
    group = layout.contracted("channel")
    in_blocks = 2 * shape.blocks * options.repeats * (6 if options.rematerialize == "block" else 4)
    points = 8 * shape.grid[0] * shape.grid[1] if shape.head == "blend" else 0
    rows = ((in_blocks + 4) * shape.tokens + points) / layout.domain * options.batch / layout.data
    sums = in_blocks + 4 + (8 if points else 0)
    return [Transfer("norms", group, 2 * gathered_bytes(group, rows * FLOAT32), 2 * sums * (group.size - 1))]


def gradient_transfers(shape: Shape, layout: Layout, options: StepOptions) -> list[Transfer]:
    """Sums of float32 gradients over instances, and with ZeRO the gathering of what each instance updated or keeps.

    none: all-reduce. moments: summed and cut, then the new parameters gathered. parameters: summed and cut, and
    gathered for the forward pass and, where it is rematerialized, again for the backward pass.
    """
    group, own = layout.replicas, parameters(shape) / layout.instance
    hops, whole = group.size - 1, gathered_bytes(group, own * FLOAT32)
    if options.zero == "none":
        return [Transfer("gradients over data", group, 2 * whole, 2 * hops, "backward")]
    gradients = Transfer("gradients over data", group, whole, hops, "backward")
    if options.zero == "moments":
        return [gradients, Transfer("parameters over data", group, whole, hops)]
    times = 2 if options.rematerialize == "block" else 1
    return [gradients, Transfer("parameters over data", group, times * whole, times * hops, "backward")]


def step_transfers(shape: Shape, layout: Layout, options: StepOptions) -> list[Transfer]:
    """Every transfer of a training step on this mesh that moves something."""
    transfers = []
    for c in contractions(shape):
        transfers += (head_transfers if c.name == "blend" else contraction_transfers)(c, layout, options)
    transfers += norm_transfers(shape, layout, options) + gradient_transfers(shape, layout, options)
    return [transfer for transfer in transfers if transfer.bytes]


def read_bytes(shape: Shape, layout: Layout, options: StepOptions, *, devices: int = 1) -> float:
    """Bytes that a process with `devices` devices reads from the archive per step.

    Each device's box of each frame: (channels / tensor) x (lat / domain) x lon, of batch / data samples; no two
    devices' boxes are the same. Static fields and padding are not in the archive.
    """
    lat, lon = shape.grid
    channels = min(shape.predicted, shape.channels / layout.tensor)
    box = channels * lat / layout.domain * lon
    return devices * box * options.frames * options.stored_bytes * options.batch / layout.data
