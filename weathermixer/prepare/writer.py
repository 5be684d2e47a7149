"""An archive in the making: metadata, a journal of finished shards, statistics; all of it is made readable at once.

The journal has one entry per finished shard, so that a prepare that was killed goes on. An entry is written once its
shard is committed, whole or not at all (TensorStore renames files into place, object stores put objects at once), and
holds the shard's statistics and checksums: finished shards are never read again. It also tells what the shard was made
of: one that is now to be made of other times is made again, and others stay.
"""

import contextlib
import datetime
import fcntl
import io
import itertools
import json
import os
import reprlib
import secrets
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

import weathermixer
from weathermixer.archive import storage
from weathermixer.archive.archive import EPOCH, FORMAT, FORMAT_VERSION, HOUR, STATISTICS, Statistics
from weathermixer.archive.layout import Layout
from weathermixer.fields.grid import Grid
from weathermixer.fields.variables import Channel

FOLDER = ".prepare"  # of the journal
AHEAD = 256  # of its entries, which are read before they are asked for
_ATTRIBUTES = {
    "time": {"units": "hours since 1970-01-01", "calendar": "proleptic_gregorian", "standard_name": "time"},
    "latitude": {"units": "degrees_north", "standard_name": "latitude"},
    "longitude": {"units": "degrees_east", "standard_name": "longitude"},
}


def create_archive(
    path: str | os.PathLike,
    *,
    times: np.ndarray,
    grid: Grid,
    channels: Sequence[Channel],
    static: Mapping[str, Float[np.ndarray, "lat lon"]],
    scale: Float[np.ndarray, " n"],
    offset: Float[np.ndarray, " n"],
    layout: Layout,
    attributes: Mapping[str, Any],
) -> storage.Array:
    """Writes an archive's metadata and returns its `fields`, to be filled whole shards at a time and published.

    Shards that are there stay. `attributes` needs step_hours. Every chunk has a checksum that finds a flipped bit.
    Raises ValueError where the archive exists and where times are no whole hours.
    """
    check_destination(path)
    if not len(times) or np.any(times[1:] <= times[:-1]) or np.any(times != EPOCH + (times - EPOCH) // HOUR * HOUR):
        raise ValueError("an archive's times must be whole hours that ascend, and there must be at least one")
    target = working_path(os.fspath(path))
    storage.write_json(storage.open_folder(storage.join(target, "fields")), "zarr.json", layout.metadata)
    fields = np.array([*static.values()], np.float32).reshape(-1, *grid.shape)
    for name, values, dimensions in (
        ("time", (times - EPOCH) // HOUR, ["time"]),
        ("latitude", np.asarray(grid.latitude, np.float64), ["latitude"]),
        ("longitude", np.asarray(grid.longitude, np.float64), ["longitude"]),
        ("scale", np.asarray(scale, np.float64), ["channel"]),
        ("offset", np.asarray(offset, np.float64), ["channel"]),
        ("static", fields, ["static_channel", "latitude", "longitude"]),
    ):
        attributes_of = _ATTRIBUTES.get(name, {})
        storage.write_array(storage.join(target, name), values, dimensions=dimensions, attributes=attributes_of)
    storage.write_text_array(storage.join(target, "channel"), [c.name for c in channels], dimension="channel")
    storage.write_text_array(storage.join(target, "static_channel"), list(static), dimension="static_channel")
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "complete": False,
        "software": f"weathermixer {weathermixer.__version__}",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "domain": layout.domain,
        "tensor": layout.tensor,
        "compressor": layout.compressor,
        "levels_hpa": [channel.level_hpa for channel in channels],
        "units": [channel.units for channel in channels],
        **attributes,
    }
    _write_group(target, document, {})
    return storage.open_array(storage.join(target, "fields"), write=True)


def write_statistics(path: str | os.PathLike, statistics: Statistics) -> None:
    """Writes the statistics of an archive that is being made."""
    target = working_path(os.fspath(path))
    for name in STATISTICS:
        values = np.asarray(getattr(statistics, name), np.int64 if name == "missing" else np.float64)
        storage.write_array(storage.join(target, name), values, dimensions=["channel"])


def publish(path: str | os.PathLike, *, attributes: Mapping[str, Any] = {}) -> None:
    """Makes an archive readable, all at once: `attributes` are added, it is complete and in place, its journal goes."""
    path = os.fspath(path)
    target = working_path(path)
    folder = storage.open_folder(target)
    keys = [key.decode() for key in folder.list().result()]
    members = sorted(key.removesuffix("/zarr.json") for key in keys if key.endswith("/zarr.json"))
    document = storage.read_json(folder, "zarr.json")["attributes"] | dict(attributes) | {"complete": True}
    _write_group(target, document, {name: storage.read_json(folder, f"{name}/zarr.json") for name in members})
    if target != path:
        os.rename(target, path)
        shutil.rmtree(os.path.join(path, FOLDER), ignore_errors=True)
    else:
        storage.delete_folder(folder, FOLDER)


def check_destination(path: str | os.PathLike) -> None:
    """ValueError where no archive can be made at a path, for what is there; one that was begun can go on."""
    path = os.fspath(path)
    document = storage.read_json(storage.open_folder(path), "zarr.json")
    if document is not None and (storage.is_local(path) or document.get("attributes", {}).get("complete", True)):
        raise ValueError(f"{path} exists: delete it or choose another name")
    if storage.is_local(path) and (os.path.isfile(path) or (os.path.isdir(path) and os.listdir(path))):
        what = "a file" if os.path.isfile(path) else "a folder with something in it"
        raise ValueError(f"{path} is {what}: choose another name for the archive")
    above = os.path.dirname(os.path.abspath(path))
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if storage.is_local(path) and not (os.path.isdir(above) and os.access(above, os.W_OK)):
        raise ValueError(f"{path} cannot be made: {above} is not a folder that can be written")


def working_path(path: str) -> str:
    """Where an archive lies while it is made: beside its place on a file system, in its place in an object store."""
    return path.rstrip("/") + ".partial" if storage.is_local(path) else path


def _write_group(target: str, attributes: Mapping[str, Any], members: Mapping[str, Any]) -> None:
    """Writes the group's zarr.json, with its members' metadata inside: readers of remote stores need not list."""
    document: dict[str, Any] = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    if members:
        document["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": dict(members)}
    storage.write_json(storage.open_folder(target), "zarr.json", document)


@contextlib.contextmanager
def open_journal(path: str) -> Iterator["Journal"]:
    """The journal of the archive that is to be at `path`, held by one prepare at a time where files can be locked.

    Raises ValueError where the archive exists, where another prepare is at work, or where nothing can be written.
    """
    check_destination(path)
    target = working_path(path)
    with contextlib.ExitStack() as stack:
        try:
            if storage.is_local(path):
                os.makedirs(os.path.join(target, FOLDER), exist_ok=True)
                lock = stack.enter_context(open(os.path.join(target, FOLDER, "lock"), "w"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            journal = Journal(target)
            journal.folder.write("writable", b"").result()
        except BlockingIOError:
            raise ValueError(f"another prepare is writing {target}: wait for it, or stop it") from None
        except Exception as error:
            raise ValueError(f"{target} cannot be written: {error}") from None
        yield journal


class Journal:
    """Entries of finished pieces, under `.prepare` in `target`, the archive that is being made."""

    def __init__(self, target: str):
        self.target = target
        self.folder = storage.open_folder(storage.join(target, FOLDER))

    def open_recipe(self, plan: dict[str, Any]) -> dict[str, Any] | None:
        """What `write_recipe` wrote, None at the first start; ValueError where it was for another plan."""
        recipe = storage.read_json(self.folder, "recipe.json")
        if recipe is None:
            return None
        plan, begun = json.loads(json.dumps(plan)), recipe["plan"]
        if plan.keys() != begun.keys():
            document = storage.read_json(storage.open_folder(self.target), "zarr.json") or {"attributes": {}}
            who, when = (document["attributes"].get(name, "unknown") for name in ("software", "created"))
            raise ValueError(
                f"{self.target} was begun by another version ({who}, {when}), and this one cannot finish it: "
                "delete it, and the same command starts afresh, or finish it with that version"
            )
        differ = [key for key in sorted(plan) if plan[key] != begun[key]]
        if differ:
            what = "; ".join(f"{key}: {reprlib.repr(begun[key])}, not {reprlib.repr(plan[key])}" for key in differ)
            raise ValueError(
                f"{self.target} was begun with other options or of another source ({what}): give the same ones to go "
                "on, or delete it to start afresh"
            )
        return recipe

    def check_recipe(self, name: str) -> None:
        """ValueError where what is made here was deleted, finished or begun anew since a piece was handed out."""
        recipe = storage.read_json(self.folder, "recipe.json")
        if recipe is None or recipe["name"] != name:
            raise ValueError(f"{self.folder.url} is not the prepare that this piece was for: it was begun anew")

    def write_recipe(self, plan: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Keeps what every later start must agree with, and what it must not measure again; pieces of others end."""
        recipe = {**more, "name": secrets.token_hex(8), "plan": plan}
        storage.write_json(self.folder, "recipe.json", recipe)
        return recipe

    def write_entry(self, shard: int, **arrays: np.ndarray) -> None:
        """Marks a shard as finished."""
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # a zip file, with a CRC-32 of each member
        self.folder.write(_key(shard), buffer.getvalue()).result()

    def forget(self, shard: int) -> None:
        """Takes an entry back, before its shard is made again."""
        self.folder.write(_key(shard), None).result()

    def finished(self) -> set[int]:
        """Numbers of the shards that have entries."""
        keys = [key.decode().rpartition("-") for key in self.folder.list().result()]
        return {int(number) for name, _, number in keys if name == "shard"}

    def read_entries(self, shards: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
        """The arrays of shards' entries, in order, some of them read ahead; ValueError where one is damaged."""
        reads = ((shard, self.folder.read(_key(shard))) for shard in shards)
        ahead = deque(itertools.islice(reads, AHEAD))
        while ahead:
            shard, read = ahead.popleft()
            ahead.extend(itertools.islice(reads, 1))
            try:
                with np.load(io.BytesIO(read.result().value)) as arrays:
                    entry = dict(arrays)
            except Exception:  # zip's checksum, or whatever else a flipped byte makes of it
                what = f"{self.folder.url}{_key(shard)} is damaged"
                raise ValueError(f"{what}: delete it, and its shard is made again") from None
            yield entry


def _key(shard: int) -> str:
    return f"shard-{shard:08d}"
