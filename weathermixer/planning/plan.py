"""Every mesh of a device count, judged before anything starts: what fits, how fast it is, why others are refused."""

import dataclasses

from weathermixer.model.shape import ModelShape
from weathermixer.planning.hardware import Hardware
from weathermixer.planning.memory import memory_parts
from weathermixer.planning.meshes import Layout, StepOptions, misfits
from weathermixer.planning.time import StepTime, step_time
from weathermixer.planning.traffic import read_bytes, step_transfers

# Of a device's memory, what a program can have; the rest goes to the driver, communication buffers and fragmentation
USABLE_MEMORY = 0.92


@dataclasses.dataclass(frozen=True)
class Plan:
    """One mesh that holds the model: bytes per device, per step and per process, and the predicted step."""

    layout: Layout
    batch: int
    memory: dict[str, float]  # bytes on each device, by part
    within_node: float  # bytes that a device receives per step
    between_nodes: float
    read: float  # bytes that a process reads per step, one process per node
    time: StepTime

    @property
    def seconds_per_sample(self) -> float:
        return self.time.total / self.batch

    @property
    def seconds_without_reading(self) -> float:
        """Per sample, were storage as fast as it need be: what ranks meshes that storage makes equal."""
        return (self.time.total - self.time.read_exposed) / self.batch

    @property
    def read_rate_to_hide(self) -> float:
        """Bytes per second that a node must read for reading to hide behind the step."""
        return self.read / (self.time.total - self.time.read_exposed)


@dataclasses.dataclass(frozen=True)
class Refusal:
    """One mesh that cannot hold the model, and why, with the numbers."""

    layout: Layout
    reasons: tuple[str, ...]


def layouts(devices: int) -> list[Layout]:
    """Every (data, domain, tensor) whose product is the number of devices; ValueError where that is not positive."""
    if devices < 1:
        raise ValueError(f"devices={devices} must be at least 1")
    sizes = range(1, devices + 1)
    cuts = [(data, devices // data) for data in sizes if devices % data == 0]
    return [Layout(data, domain, left // domain) for data, left in cuts for domain in sizes if left % domain == 0]


def make_plan(shape: ModelShape, layout: Layout, options: StepOptions, hardware: Hardware) -> Plan | Refusal:
    """Judges one mesh: refused where a size does not divide or the memory is too small."""
    if reasons := misfits(shape, layout, options.part):
        return Refusal(layout, tuple(reasons))
    memory = memory_parts(shape, layout, options)
    needed, usable = sum(memory.values()), USABLE_MEMORY * hardware.memory_bytes
    if needed > usable:
        largest = sorted(memory, key=memory.get, reverse=True)[:2]
        parts = ", ".join(f"{part} {memory[part] / 1e9:.1f}" for part in largest)
        said = f"needs {needed / 1e9:.1f} GB per device ({parts}, ...), {hardware.name} has {usable / 1e9:.1f}"
        return Refusal(layout, (said,))
    split = [transfer.split(hardware.node_size) for transfer in step_transfers(shape, layout, options)]
    return Plan(
        layout=layout,
        batch=options.batch,
        memory=memory,
        within_node=sum((within for within, _ in split), 0.0),
        between_nodes=sum((between for _, between in split), 0.0),
        read=read_bytes(shape, layout, options, devices=min(hardware.node_size, layout.devices)),
        time=step_time(shape, layout, options, hardware),
    )


def plan_meshes(
    shape: ModelShape, devices: int, options: StepOptions, hardware: Hardware, *, samples_per_instance: int = 0
) -> tuple[list[Plan], list[Refusal]]:
    """Judges every mesh of so many devices: the plans by time per sample, fastest first, and the refusals.

    `samples_per_instance`, where given, makes the batch grow with the mesh's data axis and replaces options.batch.
    Raises ValueError where `devices` is not positive.

    >>> options, h100 = weathermixer.StepOptions(batch=8, rematerialize="block"), weathermixer.find_hardware("h100")
    >>> plans, refusals = weathermixer.plan_meshes(weathermixer.ModelShape(), 16, options, h100)
    >>> str(plans[0].layout), refusals[0].reasons[0]
    ('2 x 4 x 2', 'channels=72 is not divisible by tensor=16')
    """
    plans, refusals = [], []
    for layout in layouts(devices):
        batch = samples_per_instance * layout.data or options.batch
        judged = make_plan(shape, layout, dataclasses.replace(options, batch=batch), hardware)
        (plans if isinstance(judged, Plan) else refusals).append(judged)
    return sorted(plans, key=lambda plan: (plan.seconds_per_sample, plan.seconds_without_reading)), refusals
