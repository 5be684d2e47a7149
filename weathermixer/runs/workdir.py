"""A run's workdir: what it holds, and what starts, resumes or contradicts the run in it.

    config.json      every setting, and where the archive lies
    run.json      channels in order with units, roles, means and deviations; step, archive, software
    static.zarr   the grid's latitudes and longitudes, and the static fields; xarray opens it
    checkpoints/     the last few states
    owner.json       whose it is, while a run trains in it (owner.py)

run.json and static.zarr are what a run keeps of the data that it was trained on, so that nothing else is needed to
forecast with it; where there is no run.json it is an older run, or none yet.
"""

import dataclasses
import fnmatch
import json
import pathlib
import sys
from typing import Any

import google_crc32c
import jax
import numpy as np
import xarray as xr
from flax.traverse_util import flatten_dict

from weathermixer.archive.archive import Archive
from weathermixer.archive.reference import Reference
from weathermixer.fields.grid import Grid
from weathermixer.fields.variables import Channel, ChannelSet
from weathermixer.runs.settings import Settings, make_settings
from weathermixer.training.checkpoint import read_meta, saved_steps, software_versions
from weathermixer.training.checksums import read_document, write_document

CONFIG_FILE, RECORD_FILE, STATIC_STORE, CHECKPOINTS = "config.json", "run.json", "static.zarr", "checkpoints"
FORMAT_VERSION = 1  # of run.json
_STATISTICS = ("mean", "std", "tendency_std", "fill")
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
    if values.get("mesh", {}).get("zero") == "moments":  # it cut less over the instances; what it computed is the same
        values["mesh"]["zero"] = "parameters"
    try:
        return make_settings(values), archive
    except ValueError as error:
        raise ValueError(f"the run in {workdir} is of other software: {error}") from None


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """The reference of a run's numbers, and the archive that they are from: path, checksum, source, first, last."""

    reference: Reference
    archive: dict[str, Any]
    length: tuple[int, int] | None = None  # steps of the run and of its warm-up; None: older software did not say
    history: tuple[str, ...] = ()  # what the run started from, and that one before, in words


def describe_archive(archive: Archive) -> dict[str, Any]:
    """An archive as a record names it; archives that were not made by prepare have no checksum."""
    about = {name: archive.attributes.get(name) for name in ("checksum", "source")}
    return {"path": archive.path} | about | {"first": f"{archive.times[0]:.16}", "last": f"{archive.times[-1]:.16}"}


def write_record(record: Record, workdir: pathlib.Path) -> None:
    """Writes run.json, last and at once, and static.zarr; the first process does, the others need not wait."""
    if jax.process_index():
        return
    reference = record.reference
    channels = reference.channel_set
    places = {"latitude": reference.grid.latitude, "longitude": reference.grid.longitude}
    static = xr.Dataset({name: (tuple(places), field) for name, field in reference.static.items()}, places)
    static.to_zarr(workdir / STATIC_STORE, mode="w", zarr_format=3, consolidated=False)
    table = []
    for index, channel in enumerate(channels.stored):
        role = "output_only" if channel.name in channels.output_only else "state"
        role = "input_only" if channel in channels.input_only else role
        values = {name: float(getattr(reference, name)[index]) for name in _STATISTICS}
        values = {name: value if np.isfinite(value) else None for name, value in values.items()}
        table.append({"role": role, **dataclasses.asdict(channel), **values})
    document = {
        "format": "weathermixer-run",
        "format_version": FORMAT_VERSION,
        "step_hours": reference.step_hours,
        "channels": table,
        "static": {name: Channel(name).units for name in channels.static},
        "static_crc32c": _checksum(static),
        "forcings": channels.forcings,
        "channel_multiple": channels.multiple,
        "archive": record.archive,
        "length": record.length,
        "history": record.history,
        "software": software_versions(),
    }
    write_document(document, workdir / RECORD_FILE)


def read_record(workdir: pathlib.Path) -> Record:
    """Reads what `write_record` wrote.

    Raises ValueError where there is none, for another version of the format, and where what was written is damaged.
    """
    path, store = workdir / RECORD_FILE, workdir / STATIC_STORE
    if not path.exists():
        raise ValueError(
            f"{workdir} holds a run of older software, without {RECORD_FILE}: call its training command once more, "
            "which writes that from the archive, and trains no further where it has ended"
        )
    try:
        document = read_document(path)
        if document["format_version"] != FORMAT_VERSION:
            raise ValueError(f"{path} has format version {document['format_version']}, not {FORMAT_VERSION}")
        static = _read_static(store)
        if _checksum(static) != document.get("static_crc32c", _checksum(static)):  # older software had none
            raise ValueError(f"{store} is damaged: its CRC-32C differs")
    except ValueError as error:
        raise ValueError(
            f"{error}: delete {path} and call the run's training command once more, which makes it again from its data"
        ) from None
    table, names = document["channels"], tuple(document["static"])
    channels = [Channel(**{field.name: row[field.name] for field in dataclasses.fields(Channel)}) for row in table]
    roles = {
        role: [channel.name for channel, row in zip(channels, table) if row["role"] == role]
        for role in ("input_only", "output_only")
    }
    reference = Reference(
        ChannelSet.from_channels(channels, names, document["channel_multiple"], forcings=document["forcings"], **roles),
        Grid(static.latitude.values, static.longitude.values),
        document["step_hours"],
        *(np.array([row[name] for row in table], np.float64) for name in _STATISTICS),
        static={name: static[name].values for name in names},
    )
    length = document.get("length")
    return Record(reference, document["archive"], length and tuple(length), tuple(document.get("history", ())))


def _read_static(store: pathlib.Path) -> xr.Dataset:
    try:
        return xr.load_dataset(store, engine="zarr", consolidated=False, chunks=None)
    except Exception as error:  # zarr raises anything where it is damaged
        raise ValueError(f"{store} is damaged: {type(error).__name__} {error}") from None


def _checksum(static: xr.Dataset) -> int:
    """CRC-32C of all values, in the order of their names."""
    return google_crc32c.value(b"".join(static[name].values.tobytes() for name in sorted(static.variables)))


def find_record(workdir: pathlib.Path, archive: Archive, *, accept_data: bool) -> Record | None:
    """The record of the run in a workdir that goes on with an archive; None where it has none yet.

    Raises ValueError where the archive is not the one that the run began with. `accept_data` takes another one, with
    the run's statistics, as long as its step is the same; channels and grid are compared when it is read.
    """
    if not ((workdir / RECORD_FILE).exists() and saved_steps(workdir / CHECKPOINTS)):
        return None
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
