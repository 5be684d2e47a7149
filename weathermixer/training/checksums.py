"""CRC-32C of JSON documents, and of the files of a folder: each process sums what it wrote, the first one the rest.

    FOLDER/checksums.json      {NAME: [CRC, BYTES]} of each file below

A folder below that has its own is summed there, and in the folder above that file alone is.
"""

import json
import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import google_crc32c

from weathermixer.archive import storage

CHECKSUMS_FILE = "checksums.json"
_BLOCK_BYTES = 1 << 20  # a sum of so many keeps the interpreter's lock for 0.1 ms
_READERS = 8
# Orbax writes these when all else is there, and nothing that is restored is in them
_COMMITTED = ("_CHECKPOINT_METADATA", "commit_success.txt")


def write_document(document: dict[str, Any], path: pathlib.Path) -> None:
    """Writes a JSON document, whole or not at all, with the CRC-32C of its values."""
    storage.write_whole(path, json.dumps(document | {"crc32c": _checksum(document)}, indent=2) + "\n")


def read_document(path: pathlib.Path, *, older: bool = True) -> dict[str, Any]:
    """Reads what `write_document` wrote, or `older` software did, without a CRC; ValueError where it is damaged."""
    try:
        document = json.loads(path.read_text())
        found = document.pop("crc32c", None)
        if found != _checksum(document) and not (older and found is None):
            raise ValueError("its CRC-32C differs")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return document


def _checksum(document: dict[str, Any]) -> str:
    return f"{google_crc32c.value(json.dumps(document).encode()):08x}"


def write_checksums(folder: pathlib.Path) -> int:
    """Sums the files below a folder that is complete, but those that are summed already; the bytes of all of them."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in _COMMITTED]
    summed = [path.parent for path in files if path.name == CHECKSUMS_FILE]
    own = [path for path in files if path.name == CHECKSUMS_FILE or not any(f in path.parents for f in summed)]
    write_document({path.relative_to(folder).as_posix(): _digest(path) for path in own}, folder / CHECKSUMS_FILE)
    return sum(path.stat().st_size for path in files)


def check_files(folder: pathlib.Path, *, share: slice = slice(None)) -> tuple[int, list[str]]:
    """(bytes read, what is wrong with which file) of the files that were summed, or of a share of them."""
    entries = []
    try:
        for sums in (folder / CHECKSUMS_FILE, *sorted(folder.rglob(f"*/{CHECKSUMS_FILE}"))):
            entries += [(sums.parent / name, *digest) for name, digest in read_document(sums, older=False).items()]
    except ValueError as error:
        return 0, [str(error)]
    with ThreadPoolExecutor(_READERS) as readers:
        found = list(readers.map(lambda entry: _compare(*entry), entries[share]))
    return sum(size for _, _, size in entries[share]), [problem for problem in found if problem]


def _compare(path: pathlib.Path, checksum: int, size: int) -> str:
    """What is wrong with a file, in words; empty where nothing is."""
    try:
        found, length = _digest(path)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if length != size:
        return f"{path} has {length} bytes, not {size}"
    return "" if found == checksum else f"{path} is damaged: its CRC-32C differs"


def _digest(path: pathlib.Path) -> tuple[int, int]:
    """(CRC-32C, bytes) of a file."""
    checksum = size = 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            checksum, size = google_crc32c.extend(checksum, block), size + len(block)
    return checksum, size
