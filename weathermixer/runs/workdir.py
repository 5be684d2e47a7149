"""A run's workdir: what starts, resumes or contradicts the run in it.

config.json      every setting, and where the archive lies
run.json, static.zarr      what it was trained on (record.py)
checkpoints/     the last few states
"""

import json
import os
import pathlib
from typing import Any

import jax

from weathermixer.archive.archive import Archive
from weathermixer.archive.reference import make_reference
from weathermixer.runs import build
from weathermixer.runs.record import Record, describe_archive, read_record, write_document
from weathermixer.runs.settings import Settings, make_settings

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
REPORTED = ("mesh", "evaluation")  # where things lie, and what is reported of them
# what else a resumed run may be given otherwise: it changes speed, memory or reporting, not what is computed
LENGTH = ("training.steps", "training.epochs")  # free too where the rate is constant
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


def check_workdir(settings: Settings, workdir: pathlib.Path) -> None:
    """Raises ValueError where the workdir cannot be written, or holds a run with other settings that matter."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to workdir={workdir}: {error}; choose another") from error
    if not os.access(workdir, os.W_OK):
        raise ValueError(f"cannot write to workdir={workdir}: permission denied; choose another")
    if not (workdir / CONFIG_FILE).exists():
        return
    # as JSON: tuples are lists there; fields that the run does not know yet have their defaults
    before, now = (json.loads(json.dumps(s.values())) for s in (read_settings(workdir)[0], settings))
    for part in now:
        was, wanted = _flat(part, before[part]), _flat(part, now[part])
        for name in was | wanted:
            old, new = was.get(name), wanted.get(name)  # None: a name of a mapping that only the other has
            if name in LENGTH and settings.optimizer.schedule == "constant" == before["optimizer"]["schedule"]:
                continue
            if part not in REPORTED and name not in FREE_TO_CHANGE and old != new:
                hint = f"train another from it, --config.training.init_from={workdir}, " if name in LENGTH else ""
                raise ValueError(
                    f"{workdir} holds a run with {name}={old}, not {new}: "
                    f"resume it with its own config, {hint}or choose another workdir"
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
        write_document(settings.values() | {"archive": archive}, workdir / CONFIG_FILE)


def read_settings(workdir: pathlib.Path) -> tuple[Settings, str | None]:
    """(settings, archive) as `write_settings` kept them; ValueError where the workdir holds no run."""
    path = workdir / CONFIG_FILE
    if not path.exists():
        raise ValueError(f"{workdir} holds no run: it has no {CONFIG_FILE}; train one there first")
    values = json.loads(path.read_text())
    archive = values.pop("archive", None)  # runs of older software did not say
    return make_settings(values), archive


def make_record(settings: Settings, workdir: pathlib.Path, archive: Archive, *, accept_data: bool) -> Record:
    """What the run in a workdir refers to: its own record where it has one, else the archive that it starts with.

    Raises ValueError where the archive is not the one that the run began with. `accept_data` takes another one, with
    the run's statistics, as long as its step is the same; channels and grid are compared when it is read.
    """
    record = read_record(workdir)
    if record is None:
        channel_set = build.make_channel_set(settings, archive)
        reference = make_reference(archive, channel_set, fill_values=settings.data.fill_values)
        return Record(reference, describe_archive(archive))
    if archive.step_hours != record.reference.step_hours:
        raise ValueError(
            f"{workdir} holds a run with steps of {record.reference.step_hours} h, {archive.path} has times "
            f"{archive.step_hours} h apart: resume it with its own data, or choose another workdir"
        )
    before, now = record.archive, describe_archive(archive)
    if before["checksum"] != now["checksum"] and not accept_data:
        words = "{path} ({first} to {last}, checksum {checksum!s:.12})"
        raise ValueError(
            f"{workdir} holds a run on {words.format_map(before)}, not {words.format_map(now)}: resume it with its own "
            "data, or say --accept-data to go on with this one and the run's own statistics"
        )
    return record
