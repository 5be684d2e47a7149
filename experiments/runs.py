"""A run on disk: its config in the workdir, what a resumed run may change of it, and opening it with its model."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import build
from weathermixer.checkpoint import open_checkpoints
from weathermixer.data.archive import Archive
from weathermixer.data.standardization import Standardization, make_standardization
from weathermixer.mesh import make_mesh, use_mesh
from weathermixer.state import describe
from weathermixer.variables import ChannelSet

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
# what a resumed run may be given otherwise: it changes speed, memory or reporting, not what is computed
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
    config: ConfigDict
    mesh: Mesh
    archive: Archive
    channel_set: ChannelSet
    standardization: Standardization
    apply: Callable
    params: Any
    step: int


def config_values(config: ConfigDict) -> dict[str, Any]:
    """The config as plain JSON values."""
    return json.loads(config.to_json())


def check_workdir(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Raises ValueError where the workdir cannot be written, or holds a run of another model or other data."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to workdir={workdir}: {error}; choose another") from error
    if not os.access(workdir, os.W_OK):
        raise ValueError(f"cannot write to workdir={workdir}: permission denied; choose another")
    path = workdir / CONFIG_FILE
    if path.exists():
        before, now = json.loads(path.read_text()), config_values(config)
        for part in ("seed", "data", "model", "loss", "optimizer", "training"):
            for name, value in _flat(part, now[part]).items():
                if name not in FREE_TO_CHANGE and _flat(part, before.get(part)).get(name) != value:
                    raise ValueError(
                        f"{workdir} holds a run with {name}={_flat(part, before.get(part)).get(name)}, not {value}: "
                        "resume it with its own config, or choose another workdir"
                    )


def _flat(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {key: leaf for part, inner in value.items() for key, leaf in _flat(f"{name}.{part}", inner).items()}


def write_config(config: ConfigDict, workdir: pathlib.Path, *, archive: str | None) -> None:
    """Keeps the config in the workdir, from where scores and forecasts read it; the first process writes.

    `archive` is the run's --data; None where it trains on the config's own data.
    """
    if archive and "://" not in archive:
        archive = os.path.abspath(os.path.expanduser(archive))
    if jax.process_index() == 0:
        partial = workdir / (CONFIG_FILE + ".partial")
        partial.write_text(json.dumps(config_values(config) | {"archive": archive}, indent=2))
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
    config = ConfigDict(values)
    try:
        archive = build.open_data(config, data or trained_on)
    except ValueError as error:
        if data or not trained_on:
            raise
        raise ValueError(
            f"{workdir} was trained on {trained_on}, but {error}; say where it is now: --data=ARCHIVE"
        ) from None
    mesh = mesh or make_mesh(config.mesh.data, config.mesh.domain, config.mesh.tensor)
    channel_set = build.make_channel_set(config, archive)
    with use_mesh(mesh):
        standardization = make_standardization(archive, channel_set, mesh)
        shape = build.make_model_shape(config, archive.grid.shape, channel_set)
        make_params, apply = build.make_model(config, shape, build.tendency(archive, channel_set), mesh)
        target = describe(jax.eval_shape(make_params, jax.random.key(0)), mesh)
        part = "ema" if config.training.ema_decay > 0 else "params"
        with open_checkpoints(workdir / CHECKPOINTS) as checkpoints:
            step = checkpoints.latest_step()
            params = checkpoints.restore({part: target}, partial=True)[part]
    return Run(workdir, config, mesh, archive, channel_set, standardization, apply, params, step)
