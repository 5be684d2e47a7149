"""A run's workdir: what starts, resumes or contradicts the run in it.

config.json      every setting, and where the archive lies
run.json, static.zarr      what it was trained on (record.py)
checkpoints/     the last few states
owner.json       whose it is, while a run trains in it (owner.py)
"""

import fnmatch
import json
import pathlib
import sys

import jax
from flax.traverse_util import flatten_dict

from weathermixer.archive.archive import Archive
from weathermixer.archive.reference import make_reference
from weathermixer.runs import build
from weathermixer.runs.record import RECORD_FILE, Record, describe_archive, read_record
from weathermixer.runs.settings import Settings, make_settings
from weathermixer.training.checkpoint import read_meta, saved_steps
from weathermixer.training.checksums import read_document, write_document

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
# What a resumed run may be given otherwise (docs/training.md lists it): where things lie, what is reported of them, and
# what changes speed, memory or keeping, not what is computed; its length too where the rate is constant
FREE_TO_CHANGE = (
    "mesh.*", "evaluation.*", "data.source", "data.prefetch", "data.on_error", "model.rematerialize", "model.schedule",
    "training.log_every", "training.trackers", "training.checkpoint_every", "training.keep_*", "training.on_damage",
)  # fmt: skip
LENGTH = ("training.steps", "training.epochs")


def check_workdir(settings: Settings, workdir: pathlib.Path) -> None:
    """Raises ValueError where the workdir holds a run with other settings that matter.

    A run that never saved anything holds nobody to its settings. Fields that it does not know yet had their defaults.
    """
    if not saved_steps(workdir / CHECKPOINTS):
        return
    before, now = (
        flatten_dict(json.loads(json.dumps(s.values())), sep=".") for s in (read_settings(workdir)[0], settings)
    )
    free = (*FREE_TO_CHANGE, *LENGTH * (settings.optimizer.schedule == "constant" == before["optimizer.schedule"]))
    for name in before | now:
        old, new = before.get(name), now.get(name)  # None: a name of a mapping that only the other has
        if old != new and not any(fnmatch.fnmatch(name, pattern) for pattern in free):
            raise ValueError(
                f"{workdir} holds a run with {name}={old}, not {new}: resume it with its own config, or train another "
                f"from it: --workdir=NEW --config.training.init_from={workdir}"
            )


def write_settings(settings: Settings, workdir: pathlib.Path, *, archive: str | None) -> None:
    """Keeps the settings in the workdir, from where scores and forecasts read it; the first process writes.

    `archive` is the run's --data, absolute; None where it trains on the settings' own data.
    """
    if jax.process_index() == 0:
        write_document(settings.values() | {"archive": archive}, workdir / CONFIG_FILE)


def read_settings(workdir: pathlib.Path) -> tuple[Settings, str | None]:
    """(settings, archive) as `write_settings` kept them, or, where that is damaged, as the last checkpoint did.

    Raises ValueError where the workdir holds no run.
    """
    try:
        values = read_document(workdir / CONFIG_FILE)
    except ValueError as error:
        if (meta := read_meta(workdir / CHECKPOINTS)) is None:
            if (workdir / CONFIG_FILE).exists():
                raise
            raise ValueError(f"{workdir} holds no run: it has no {CONFIG_FILE}; train one there first") from None
        if jax.process_index() == 0:
            print(f"{error}: the last checkpoint's own is taken", file=sys.stderr)
        values = meta["config"] | {"archive": meta.get("archive")}
    archive = values.pop("archive", None)  # runs of older software did not say
    try:
        return make_settings(values), archive
    except ValueError as error:
        raise ValueError(f"the run in {workdir} is of other software: {error}") from None


def make_record(settings: Settings, workdir: pathlib.Path, archive: Archive, *, accept_data: bool) -> Record:
    """What the run in a workdir refers to: its own record where it has one, else the archive that it starts with.

    Raises ValueError where the archive is not the one that the run began with. `accept_data` takes another one, with
    the run's statistics, as long as its step is the same; channels and grid are compared when it is read.
    """
    if not ((workdir / RECORD_FILE).exists() and saved_steps(workdir / CHECKPOINTS)):
        channel_set = build.make_channel_set(settings, archive)
        reference = make_reference(archive, channel_set, fill_values=settings.data.fill_values)
        return Record(reference, describe_archive(archive))
    record = read_record(workdir)
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


def find_length(record: Record, settings: Settings, starts: int) -> tuple[int, int]:
    """(steps of the run, steps of its warm-up): what it began with, however much data it goes on with.

    A run at a constant rate may be made longer, or shorter; its warm-up stays.
    """
    steps, warmup = build.training_steps(settings, starts)
    if record.length is None:
        return steps, warmup
    return (steps, record.length[1]) if settings.optimizer.schedule == "constant" else record.length
