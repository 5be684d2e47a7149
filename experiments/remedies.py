"""What would fit, by the planner's formulae, where a run ends for want of device memory."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from experiments import plan
from weathermixer import ModelShape, Settings, find_hardware
from weathermixer.planning.hardware import Hardware, find_device
from weathermixer.planning.memory import memory_parts
from weathermixer.planning.meshes import Layout
from weathermixer.planning.plan import Plan, layouts, make_plan


@contextlib.contextmanager
def explained(settings: Settings, shape: ModelShape, mesh: Mesh) -> Iterator[None]:
    """Turns a run's failure for want of device memory into a ValueError that says what needs less."""
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
    """One line: what the step needs, and up to three changes of the settings, each with nothing needless, that fit."""
    size, block = settings.training.batch_size, {"model.rematerialize": "block"}
    # the planner knows members as a larger batch
    alone = settings.replace(_sizes(layout) | {"training.members": 1, "model.noise": 0})
    tried = [block, {"mesh.zero": "parameters"}, *map(_sizes, layouts(layout.devices))]
    for parts in range(2, size + 1):
        if size % parts == 0:
            tried += [{"training.accumulate": parts}, {"training.accumulate": parts} | block]
    batch = size * settings.training.members
    needed = sum(memory_parts(shape, layout, plan.step_options(alone, hardware, batch=batch)).values())
    fitting: list[dict[str, Any]] = []
    for changes in tried:
        changes = {name: value for name, value in changes.items() if alone.replace({name: value}) != alone}
        if any(_is_more(changes, fit) for fit in fitting):
            continue
        changed = alone.replace(changes)
        mesh = Layout(changed.mesh.data, changed.mesh.domain, changed.mesh.tensor)
        judged = make_plan(shape, mesh, plan.step_options(changed, hardware, batch=batch), hardware)
        # by a tenth at least: the planner may be a little wrong, and was where it said that this fits
        if isinstance(judged, Plan) and sum(judged.memory.values()) < 0.9 * needed:
            fitting.append(changes)
    said = [" ".join(f"--config.{name}={value}" for name, value in changes.items()) for changes in fitting[:3]]
    return (
        f"out of device memory: the planner counts {needed / 1e9:.1f} GB of {hardware.memory_bytes / 1e9:.1f} GB for "
        f"batch_size={size} on a mesh of {layout}. "
        + (f"It would fit with {', or '.join(said)}" if said else "Nothing fits: use more devices")
        + "; python -m experiments.plan shows all meshes"
    )


def _is_more(changes: dict[str, Any], fit: dict[str, Any]) -> bool:
    """Whether changes are those that fit and something needless: others beside them, or a batch in more parts."""
    alike = (changes.get(name) == value or name == "training.accumulate" for name, value in fit.items())
    return fit.keys() <= changes.keys() and all(alike)


def _sizes(layout: Layout) -> dict[str, int]:
    return {f"mesh.{name}": ways for name, ways in dataclasses.asdict(layout).items()}
