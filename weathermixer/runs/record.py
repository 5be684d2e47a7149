"""What a run keeps of the data that it was trained on, so that nothing else is needed to forecast with it.

    run.json      channels in order with units, roles, means and deviations; step, model's shape, archive, software
    static.zarr   the grid's latitudes and longitudes, and the static fields; xarray opens it

Both are written once, at the run's start; where a workdir has no run.json it is an older run, or none yet.
"""

import dataclasses
import json
import pathlib
from typing import Any

import google_crc32c
import jax
import numpy as np

from weathermixer.archive import storage
from weathermixer.archive.archive import Archive
from weathermixer.archive.reference import Reference
from weathermixer.fields.grid import Grid
from weathermixer.fields.variables import Channel, ChannelSet
from weathermixer.model.shape import ModelShape
from weathermixer.training.checkpoint import software_versions
from weathermixer.training.checksums import CHECKSUMS_FILE, check_files, write_checksums

RECORD_FILE = "run.json"
STATIC_STORE = "static.zarr"
FORMAT_VERSION = 1
ROLES = ("state", "output_only", "input_only")
_STATISTICS = ("mean", "std", "tendency_std", "fill")


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """The reference of a run's numbers, and the archive that they are from: path, checksum, source, first, last."""

    reference: Reference
    archive: dict[str, Any]
    length: tuple[int, int] | None = None  # steps of the run and of its warm-up; None: older software did not say
    history: tuple[str, ...] = ()  # what the run started from, and that one before, in words


def describe_archive(archive: Archive) -> dict[str, Any]:
    """An archive as a record names it; archives that were not made by prepare have no checksum."""
    return {
        "path": archive.path,
        "checksum": archive.attributes.get("checksum"),
        "source": archive.attributes.get("source"),
        "first": f"{archive.times[0]:.16}",
        "last": f"{archive.times[-1]:.16}",
    }


def write_record(record: Record, workdir: pathlib.Path, *, shape: ModelShape) -> None:
    """Writes run.json, last and at once, and static.zarr; the first process does, the others need not wait."""
    if jax.process_index():
        return
    reference = record.reference
    channels = reference.channel_set
    # JSON has no NaN: null
    statistics = ([v if np.isfinite(v) else None for v in getattr(reference, name).tolist()] for name in _STATISTICS)
    table = [
        {"role": _role(channel, channels), **dataclasses.asdict(channel), **dict(zip(_STATISTICS, values))}
        for channel, values in zip(channels.stored, zip(*statistics))
    ]
    store = str(workdir / STATIC_STORE)
    storage.write_json(storage.open_folder(store), "zarr.json", {"zarr_format": 3, "node_type": "group"})
    rows, columns = ("latitude", reference.grid.latitude), ("longitude", reference.grid.longitude)
    for name, values in (rows, columns):
        storage.write_array(storage.join(store, name), np.asarray(values, np.float64), dimensions=[name])
    for name, field in reference.static.items():
        storage.write_array(storage.join(store, name), field, dimensions=[rows[0], columns[0]])
    write_checksums(pathlib.Path(store))
    document = {
        "format": "weathermixer-run",
        "format_version": FORMAT_VERSION,
        "step_hours": reference.step_hours,
        "channels": table,
        "static": {name: Channel(name).units for name in channels.static},
        "forcings": channels.forcings,
        "channel_multiple": channels.multiple,
        "model": dataclasses.asdict(shape),
        "archive": record.archive,
        "length": record.length,
        "history": record.history,
        "software": software_versions(),
    }
    write_document(document, workdir / RECORD_FILE)


def read_record(workdir: pathlib.Path) -> Record | None:
    """Reads what `write_record` wrote; None where there is none.

    Raises ValueError for another version of the format, and where what was written is damaged.
    """
    path = workdir / RECORD_FILE
    if not path.exists():
        return None
    try:
        document = read_document(path)
        if (workdir / STATIC_STORE / CHECKSUMS_FILE).exists() and (found := check_files(workdir / STATIC_STORE)[1]):
            raise ValueError("; ".join(found))
    except ValueError as error:
        raise ValueError(
            f"{error}: delete {path} and call the run's training command once more, which makes it again from its data"
        ) from None
    if document["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {document['format_version']}, this software reads {FORMAT_VERSION}"
        )
    store = str(workdir / STATIC_STORE)
    table, names = document["channels"], tuple(document["static"])
    channels = [Channel(**{field.name: row[field.name] for field in dataclasses.fields(Channel)}) for row in table]
    of_role = {role: [c.name for c, row in zip(channels, table) if row["role"] == role] for role in ROLES}
    roles = {role: names for role, names in of_role.items() if role != "state"}
    arrays = {n: storage.read_array(storage.join(store, n)) for n in ("latitude", "longitude", *names)}
    fields = {name: future.result() for name, future in arrays.items()}
    reference = Reference(
        ChannelSet.from_channels(channels, names, document["channel_multiple"], forcings=document["forcings"], **roles),
        Grid(fields["latitude"], fields["longitude"]),
        document["step_hours"],
        *(np.array([row[name] for row in table], np.float64) for name in _STATISTICS),
        static={name: fields[name] for name in names},
    )
    length = document.get("length")
    return Record(reference, document["archive"], length and tuple(length), tuple(document.get("history", ())))


def _role(channel: Channel, channels: ChannelSet) -> str:
    if channel in channels.input_only:
        return "input_only"
    return "output_only" if channel.name in channels.output_only else "state"


def write_document(document: dict[str, Any], path: pathlib.Path) -> None:
    """Writes a JSON document, whole or not at all, with the CRC-32C of its values."""
    storage.write_whole(path, json.dumps(document | {"crc32c": _checksum(document)}, indent=2) + "\n")


def read_document(path: pathlib.Path) -> dict[str, Any]:
    """Reads what `write_document` wrote; ValueError where it is not there, or damaged. Older software had no CRC."""
    try:
        document = json.loads(path.read_text())
        if document.pop("crc32c", None) not in (None, _checksum(document)):
            raise ValueError("its CRC-32C differs")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return document


def _checksum(document: dict[str, Any]) -> str:
    return f"{google_crc32c.value(json.dumps(document).encode()):08x}"
