"""How a run ended, in its workdir: WORKDIR/ended.json, which is not there while it runs, and after a kill.

Where it ended for want of device memory that says, by the planner's formulae, what would fit.
"""

import contextlib
import dataclasses
import functools
import pathlib
import socket
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from experiments import command_line, plan
from weathermixer.model.shape import ModelShape
from weathermixer.parallel import distributed
from weathermixer.planning.hardware import Hardware, find_device, find_hardware
from weathermixer.planning.memory import memory_parts
from weathermixer.planning.meshes import Layout
from weathermixer.planning.plan import Plan, layouts, make_plan
from weathermixer.runs.settings import Settings
from weathermixer.training.checksums import write_document

ENDED_FILE = "ended.json"
_HOW = {distributed.FINISHED: "finished", distributed.PREEMPTED: "preempted"}


def write_end(workdir: pathlib.Path, status: int, why: str, **more: Any) -> None:
    """Writes how, status (parallel/distributed.py), why, and when and where that was."""
    document = {"how": _HOW.get(status, "failed"), "status": status, "why": why, "time": time.time()}
    place = {"process": jax.process_index(), "host": socket.gethostname()}
    write_document(document | place | more, workdir / ENDED_FILE)


@contextlib.contextmanager
def failing(workdir: pathlib.Path) -> Iterator[None]:
    """Records what raises within it, each process in a file of its own. One of several ends at once with the others.

    Where that is left to whoever opened a checkpoint or a log, they wait in vain for the others first.
    """
    if jax.process_index() == 0:
        (workdir / ENDED_FILE).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        trace = traceback.format_exc()
        with contextlib.suppress(OSError), open(workdir / f"errors-{jax.process_index()}.txt", "a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {socket.gethostname()}\n{trace}\n")
        report = functools.partial(write_end, workdir, traceback=trace)
        if jax.process_count() > 1:
            distributed.leave(*command_line.explain(error, "train"), report)
        report(*command_line.judge(error))
        raise
    except KeyboardInterrupt:
        if jax.process_count() > 1:
            distributed.leave(130, "interrupted")
        raise


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
    """One line: what the step needs, and up to three changes of the settings with which it fits."""
    size, block = settings.training.batch_size, {"model.rematerialize": "block"}
    # the planner knows members as a larger batch
    alone = settings.replace(_sizes(layout) | {"training.members": 1, "model.noise": 0})
    tried = [block, {"mesh.zero": "parameters"}, *map(_sizes, layouts(layout.devices))]
    for parts in range(2, size + 1):
        if size % parts == 0:
            tried += [{"training.accumulate": parts}, {"training.accumulate": parts} | block]
    batch = size * settings.training.members
    needed = sum(memory_parts(shape, layout, plan.step_options(alone, hardware, batch=batch)).values())
    fitting = []
    for changes in tried:
        changed = alone.replace(changes)
        mesh = Layout(changed.mesh.data, changed.mesh.domain, changed.mesh.tensor)
        judged = make_plan(shape, mesh, plan.step_options(changed, hardware, batch=batch), hardware)
        # by a tenth at least: the planner may be a little wrong, and was where it said that this fits
        if isinstance(judged, Plan) and sum(judged.memory.values()) < 0.9 * needed:
            fitting.append(" ".join(f"--config.{name}={value}" for name, value in changes.items()))
    return (
        f"out of device memory: the planner counts {needed / 1e9:.1f} GB of {hardware.memory_bytes / 1e9:.1f} GB for "
        f"batch_size={size} on a mesh of {layout}. "
        + (f"It would fit with {', or '.join(fitting[:3])}" if fitting else "Nothing fits: use more devices")
        + "; python -m experiments.plan shows all meshes"
    )


def _sizes(layout: Layout) -> dict[str, int]:
    return {f"mesh.{name}": ways for name, ways in dataclasses.asdict(layout).items()}
