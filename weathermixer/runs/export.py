"""One folder to hand on: the parameters that forecast, with all that a run keeps, and nothing of the training.

open_run opens it as it opens a workdir. Foreign weights become such a folder too.
"""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from weathermixer.archive.reference import Reference
from weathermixer.parallel.distributed import wait_for_all
from weathermixer.parallel.mesh import make_mesh, use_mesh
from weathermixer.runs import build
from weathermixer.runs.run import Run
from weathermixer.runs.settings import Settings
from weathermixer.runs.workdir import CHECKPOINTS, Record, read_record, write_record, write_settings
from weathermixer.training.checkpoint import Checkpoints
from weathermixer.training.state import check_matches, describe, name_leaves


def export_run(run: Run, destination: str | os.PathLike) -> pathlib.Path:
    """Writes a run's parameters (their moving average where it kept one) and its record to a new folder, all at once.

    Where the archive lay is left out; what it was made of, and its checksum, stay. Raises ValueError where the
    destination exists.

    >>> weathermixer.export_run(weathermixer.open_run("runs/quickstart"), "exported").name
    'exported'
    """
    record = read_record(run.path)
    about = record.archive | {"path": pathlib.PurePath(record.archive["path"]).name}
    return _write(destination, run.settings, dataclasses.replace(record, archive=about), run.params, run.step)


def import_weights(
    mapping: Mapping[str, np.ndarray], destination: str | os.PathLike, *, settings: Settings, reference: Reference
) -> pathlib.Path:
    """Writes a folder that open_run opens from a model's weights, {"encode/kernel": array, ...}; returns its path.

    Names, shapes and orders are those of WeatherMixer's docstring. Values are kept as float32. `settings` tell the
    model's sizes, `reference` what its numbers refer to (make_reference, for an archive's). Raises ValueError that
    names every weight that is absent, not known or of another shape.

    >>> run = weathermixer.open_run("runs/quickstart")
    >>> path = weathermixer.import_weights(run.weights(), "imported", settings=run.settings, reference=run.reference)
    >>> weathermixer.open_run(path).step
    0
    """
    mesh = make_mesh(1, 1, 1)
    with use_mesh(mesh):
        make_params, _ = build.make_model(settings, reference)
        target = describe(jax.eval_shape(make_params, jax.random.key(0)), mesh)
    wanted, given = name_leaves(target), {name: np.asarray(values, np.float32) for name, values in mapping.items()}
    check_matches(wanted, given, what="the mapping")
    leaves = [jax.device_put(given[name], leaf.sharding) for name, leaf in wanted.items()]
    params = jax.tree.unflatten(jax.tree.structure(target), leaves)
    about = {"path": "", "checksum": None, "source": "imported weights", "first": "", "last": ""}
    return _write(destination, settings, Record(reference, about), params, 0)


def _write(destination: str | os.PathLike, settings: Settings, record: Record, params: Any, step: int) -> pathlib.Path:
    path = pathlib.Path(destination).expanduser().resolve()
    partial = path.with_name(path.name + ".partial")
    if path.exists():
        raise ValueError(f"{path} exists: delete it or choose another name")
    if jax.process_index() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    write_settings(settings, partial, archive=None)
    write_record(record, partial)
    with Checkpoints(partial / CHECKPOINTS, keep=1, say=lambda text: None) as checkpoints:
        checkpoints.save(step, {"params": params}, {"config": settings.values()})
    wait_for_all("parameters are written")
    if jax.process_index() == 0:
        partial.rename(path)
    wait_for_all("export is published")
    return path
