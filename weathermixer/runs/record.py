"""What a run keeps of the data that it was trained on, so that nothing else is needed to forecast with it.

    run.json      channels in order with units, roles, means and deviations; step, archive, software
    static.zarr   the grid's latitudes and longitudes, and the static fields; xarray opens it

Both are written once, at the run's start; where a workdir has no run.json it is an older run, or none yet.
"""

import dataclasses
import pathlib
from typing import Any

import google_crc32c
import jax
import numpy as np
import xarray as xr

from weathermixer.archive.archive import Archive
from weathermixer.archive.reference import Reference
from weathermixer.fields.grid import Grid
from weathermixer.fields.variables import Channel, ChannelSet
from weathermixer.training.checkpoint import software_versions
from weathermixer.training.checksums import read_document, write_document

RECORD_FILE = "run.json"
STATIC_STORE = "static.zarr"
FORMAT_VERSION = 1
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
        row = {"role": "input_only" if channel in channels.input_only else role, **dataclasses.asdict(channel)}
        values = {name: float(getattr(reference, name)[index]) for name in _STATISTICS}
        table.append(row | {name: value if np.isfinite(value) else None for name, value in values.items()})
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
