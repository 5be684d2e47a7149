"""The journal of an archive in the making: one entry per finished shard, so that a prepare that was killed goes on.

An entry is written once its shard is committed, whole or not at all (TensorStore renames files into place, object
stores put objects at once), and holds the shard's statistics and checksums: finished shards are never read again. It
also tells what the shard was made of: one that is now to be made of other times is made again, and others stay.
"""

import contextlib
import fcntl
import io
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from weathermixer.archive import storage
from weathermixer.prepare.writer import check_destination, working_path

FOLDER = ".prepare"
ENTRIES_AT_ONCE = 256  # read from stores that take their time


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
            storage.open_folder(storage.join(target, FOLDER)).write("writable", b"").result()
        except BlockingIOError:
            raise ValueError(f"another prepare is writing {target}: wait for it, or stop it") from None
        except Exception as error:
            raise ValueError(f"{target} cannot be written: {error}") from None
        yield journal


class Journal:
    """Entries of finished pieces, under `.prepare` in `target`, the archive that is being made."""

    def __init__(self, target: str):
        self.target = target
        self._folder = storage.open_folder(storage.join(target, FOLDER))

    def open_recipe(self, plan: dict[str, Any]) -> dict[str, Any] | None:
        """What `write_recipe` wrote, None at the first start; ValueError where it was for another plan."""
        recipe = storage.read_json(self._folder, "recipe.json")
        if recipe is None:
            return None
        plan = json.loads(json.dumps(plan))
        different = sorted(
            key for key in plan.keys() | recipe["plan"].keys() if plan.get(key) != recipe["plan"].get(key)
        )
        if different:
            raise ValueError(
                f"{self.target} was begun with other options ({', '.join(different)} differ): give the same ones to "
                "go on, or delete it to start afresh"
            )
        return recipe

    def check_recipe(self, name: str) -> None:
        """ValueError where what is made here was deleted, finished or begun anew since a piece was handed out."""
        recipe = storage.read_json(self._folder, "recipe.json")
        if recipe is None or recipe["name"] != name:
            raise ValueError(f"{self._folder.url} is not the prepare that this piece was for: it was begun anew")

    def write_recipe(self, plan: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Keeps what every later start must agree with, and what it must not measure again; pieces of others end."""
        recipe = {**more, "name": secrets.token_hex(8), "plan": plan}
        storage.write_json(self._folder, "recipe.json", recipe)
        return recipe

    def write_entry(self, shard: int, **arrays: np.ndarray) -> None:
        """Marks a shard as finished."""
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # a zip file, with a CRC-32 of each member
        self._folder.write(_key(shard), buffer.getvalue()).result()

    def forget(self, shard: int) -> None:
        """Takes an entry back, before its shard is made again."""
        self._folder.write(_key(shard), None).result()

    def finished(self) -> set[int]:
        """Numbers of the shards that have entries."""
        keys = [key.decode().rpartition("-") for key in self._folder.list().result()]
        return {int(number) for name, _, number in keys if name == "shard"}

    def read_entries(self, shards: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
        """The arrays of shards' entries, in order; ValueError where one is damaged."""
        for start in range(0, len(shards), ENTRIES_AT_ONCE):
            some = shards[start : start + ENTRIES_AT_ONCE]
            for shard, read in zip(some, [self._folder.read(_key(shard)) for shard in some]):
                try:
                    with np.load(io.BytesIO(read.result().value)) as arrays:
                        entry = dict(arrays)
                except Exception:  # zip's checksum, or whatever else a flipped byte makes of it
                    raise ValueError(
                        f"{self._folder.url}{_key(shard)} is damaged: delete it, and its shard is made again"
                    ) from None
                yield entry


def remove_journal(path: str) -> None:
    """Deletes the journal of an archive that is published."""
    folder = storage.open_folder(path)
    storage.delete_folder(folder, FOLDER)
    if storage.is_local(path):
        with contextlib.suppress(OSError):
            os.rmdir(os.path.join(path, FOLDER))


def _key(shard: int) -> str:
    return f"shard-{shard:08d}"
