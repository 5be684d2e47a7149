"""A run on disk: its settings in the workdir, what a resumed run may change of it, and opening it with its model."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from weathermixer.archive.archive import Archive
from weathermixer.archive.standardization import Standardization, make_standardization
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel.mesh import make_mesh, use_mesh
from weathermixer.runs import build
from weathermixer.runs.settings import Settings, make_settings
from weathermixer.training.checkpoint import open_checkpoints
from weathermixer.training.state import describe

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
REPORTED = ("mesh", "evaluation")  # where things lie, and what is reported of them
# what else a resumed run may be given otherwise: it changes speed, memory or reporting, not what is computed
FREE_TO_CHANGE = (
    "data.source",
    "data.prefetch",
    "data.on_error",
    "model.rematerialize",
    "model.schedule",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model with its data: what scores and forecasts are made from."""

    workdir: pathlib.Path
    settings: Settings
    mesh: Mesh
    archive: Archive
    channel_set: ChannelSet
    standardization: Standardization
    apply: Callable
    params: Any
    step: int


def check_workdir(settings: Settings, workdir: pathlib.Path) -> None:
    """Raises ValueError where the workdir cannot be written, or holds a run of another model or other data."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to workdir={workdir}: {error}; choose another") from error
    if not os.access(workdir, os.W_OK):
        raise ValueError(f"cannot write to workdir={workdir}: permission denied; choose another")
    path = workdir / CONFIG_FILE
    if path.exists():
        # as JSON: tuples are lists there; fields that the run does not know yet have their defaults
        values = json.loads(path.read_text())
        values.pop("archive", None)
        before, now = (json.loads(json.dumps(s.values())) for s in (make_settings(values), settings))
        for part in now:
            was = _flat(part, before[part])
            for name, value in _flat(part, now[part]).items():
                if part not in REPORTED and name not in FREE_TO_CHANGE and was[name] != value:
                    raise ValueError(
                        f"{workdir} holds a run with {name}={was[name]}, not {value}: "
                        "resume it with its own config, or choose another workdir"
                    )


def _flat(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {key: leaf for part, inner in value.items() for key, leaf in _flat(f"{name}.{part}", inner).items()}


def write_settings(settings: Settings, workdir: pathlib.Path, *, archive: str | None) -> None:
    """Keeps the settings in the workdir, from where scores and forecasts read it; the first process writes.

    `archive` is the run's --data; None where it trains on the settings' own data.
    """
    if archive and "://" not in archive:
        archive = os.path.abspath(os.path.expanduser(archive))
    if jax.process_index() == 0:
        partial = workdir / (CONFIG_FILE + ".partial")
        partial.write_text(json.dumps(settings.values() | {"archive": archive}, indent=2))
        partial.replace(workdir / CONFIG_FILE)


def open_run(workdir: str | os.PathLike, *, data: str | None = None, mesh: Mesh | None = None) -> Run:
    """Opens a trained run, with the moving average of its parameters where there is one, on any mesh.

    `data` is an archive other than the one that it was trained on. Raises ValueError where the workdir holds no run or
    no checkpoint, and where the archive is not there.
    """
    workdir = pathlib.Path(workdir)
    if not (workdir / CONFIG_FILE).exists():
        raise ValueError(f"{workdir} holds no run: it has no {CONFIG_FILE}; train one there first")
    values = json.loads((workdir / CONFIG_FILE).read_text())
    trained_on = values.pop("archive", None)  # runs of older software did not say
    settings = make_settings(values)
    try:
        archive = build.open_data(settings, data or trained_on)
    except ValueError as error:
        if data or not trained_on:
            raise
        raise ValueError(
            f"{workdir} was trained on {trained_on}, but {error}; say where it is now: --data=ARCHIVE"
        ) from None
    mesh = mesh or make_mesh(settings.mesh.data, settings.mesh.domain, settings.mesh.tensor)
    channel_set = build.make_channel_set(settings, archive)
    with use_mesh(mesh):
        standardization = make_standardization(archive, channel_set, mesh)
        shape = build.make_model_shape(settings, archive.grid.shape, channel_set)
        make_params, apply = build.make_model(settings, shape, build.tendency(archive, channel_set), mesh)
        target = describe(jax.eval_shape(make_params, jax.random.key(0)), mesh)
        part = "ema" if settings.training.ema_decay > 0 else "params"
        with open_checkpoints(workdir / CHECKPOINTS) as checkpoints:
            step = checkpoints.latest_step()
            params = checkpoints.restore({part: target}, partial=True)[part]
    return Run(workdir, settings, mesh, archive, channel_set, standardization, apply, params, step)
