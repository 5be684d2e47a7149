"""What would fit where a run ran out of device memory, from the planner's formulae."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from experiments import plan
from weathermixer.model.weathermixer import ModelShape
from weathermixer.planning.hardware import Hardware, find_device, find_hardware
from weathermixer.planning.memory import memory_parts
from weathermixer.planning.meshes import Layout
from weathermixer.planning.plan import Plan, layouts, make_plan
from weathermixer.runs.settings import Settings


@contextlib.contextmanager
def explained(settings: Settings, shape: ModelShape, mesh: Mesh) -> Iterator[None]:
    """Turns a failure for want of device memory into a ValueError that says what needs less."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        device = mesh.devices.flat[0]
        hardware = find_device(device.device_kind) or find_hardware("cpu")
        limit = (device.memory_stats() or {}).get("bytes_limit", hardware.memory_bytes)
        hardware = dataclasses.replace(hardware, memory_bytes=limit)
        raise ValueError(advise(settings, shape, Layout(*mesh.devices.shape), hardware)) from error


def advise(settings: Settings, shape: ModelShape, layout: Layout, hardware: Hardware) -> str:
    """One line: what the step needs, and up to three changes of the settings with which it fits."""
    training = settings.training
    alone = settings.replace({"training.members": 1, "model.noise": 0})  # the planner knows members as a larger batch
    step = plan.step_options(alone, hardware, batch=training.batch_size * training.members, zero=settings.mesh.zero)
    tried = [("--config.model.rematerialize=block", layout, dict(rematerialize="block"))]
    tried.append(("--config.mesh.zero=parameters", layout, dict(zero="parameters")))
    for other in layouts(layout.devices):
        sizes = zip(("data", "domain", "tensor"), dataclasses.astuple(other))
        tried.append((" ".join(f"--config.mesh.{name}={size}" for name, size in sizes), other, {}))
    for parts in range(2, training.batch_size + 1):
        words = f"--config.training.accumulate={parts}"
        tried.append((words, layout, dict(accumulate=parts)))
        words += " --config.model.rematerialize=block"
        tried.append((words, layout, dict(accumulate=parts, rematerialize="block")))
    needed = sum(memory_parts(shape, layout, step).values())
    fitting = []
    for words, other, changes in tried:
        if training.batch_size % changes.get("accumulate", 1) == 0:
            judged = make_plan(shape, other, dataclasses.replace(step, **changes), hardware)
            # by a tenth at least: the planner may be a little wrong, and was where it said that this fits
            if isinstance(judged, Plan) and sum(judged.memory.values()) < 0.9 * needed:
                fitting.append(words)
    return (
        f"out of device memory: the planner counts {needed / 1e9:.1f} GB of {hardware.memory_bytes / 1e9:.1f} GB for "
        f"batch_size={training.batch_size} on a mesh of {layout}. "
        + (f"It would fit with {', or '.join(fitting[:3])}" if fitting else "Nothing fits: use more devices")
        + "; python -m experiments.plan shows all meshes"
    )
