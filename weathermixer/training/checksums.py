"""CRC-32C of the files of a folder, kept in it: each process sums what it wrote, and the first one all the rest.

    FOLDER/CHECKSUMS      a line `CRC BYTES NAME` for each file below, and at its end the CRC of these lines

A folder below that has its own is summed there, and in the folder above that file alone is.
"""

import json
import pathlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import google_crc32c

CHECKSUMS_FILE = "CHECKSUMS"
_BLOCK_BYTES = 1 << 20  # a sum of so many keeps the interpreter's lock for 0.1 ms
_READERS = 8
# Orbax adds to these when all is written: the time, which is left out of the sum, and a file that nothing reads
_STEP_METADATA, _COMMITTED_AT, _COMMIT_MARK = "_CHECKPOINT_METADATA", "commit_timestamp_nsecs", "commit_success.txt"


def write_checksums(folder: pathlib.Path) -> int:
    """Sums every file below a folder that is complete; returns their bytes."""
    lines, total = [], 0
    for path in _files(folder):
        checksum, size = _digest(path)
        lines.append(f"{checksum:08x} {size} {path.relative_to(folder).as_posix()}\n")
        total += size
    text = "".join(lines).encode()
    (folder / CHECKSUMS_FILE).write_bytes(text + _seal(text))
    return total


def check_files(folder: pathlib.Path, *, share: slice = slice(None), only: str | None = None) -> tuple[int, list[str]]:
    """(bytes read, what is wrong with which file) of the files that were summed, of a share, or of one of them."""
    try:
        expected = [entry for entry in _expected(folder) if only is None or entry[2] == folder / only][share]
    except ValueError as error:
        return 0, [str(error)]
    with ThreadPoolExecutor(_READERS) as readers:
        found = list(readers.map(lambda entry: _compare(*entry), expected))
    return sum(size for _, size, _ in expected), [problem for problem in found if problem]


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            own = path / CHECKSUMS_FILE
            found += [own] if own.exists() else _files(path)
        elif path.name not in (CHECKSUMS_FILE, _COMMIT_MARK):
            found.append(path)
    return found


def _expected(folder: pathlib.Path) -> Iterator[tuple[int, int, pathlib.Path]]:
    """(CRC, bytes, path) of every file, those of folders below too; ValueError where the sums are damaged."""
    path = folder / CHECKSUMS_FILE
    try:
        *lines, last = path.read_bytes().splitlines(keepends=True)
        if last != _seal(b"".join(lines)):
            raise ValueError
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ValueError(f"{path} is damaged") from None
    for line in lines:
        checksum, size, name = line.decode().rstrip("\n").split(" ", 2)
        yield int(checksum, 16), int(size), folder / name
        if name.endswith(f"/{CHECKSUMS_FILE}"):
            yield from _expected((folder / name).parent)


def _seal(lines: bytes) -> bytes:
    return b"%08x\n" % google_crc32c.value(lines)


def _compare(checksum: int, size: int, path: pathlib.Path) -> str:
    """What is wrong with a file, in words; empty where nothing is."""
    try:
        found, length = _digest(path)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except ValueError:
        return f"{path} is damaged: it is no JSON"
    if length != size:
        return f"{path} has {length} bytes, not {size}"
    return "" if found == checksum else f"{path} is damaged: its CRC-32C differs"


def _digest(path: pathlib.Path) -> tuple[int, int]:
    """(CRC-32C, bytes) of a file."""
    if path.name == _STEP_METADATA:
        values = json.loads(path.read_bytes())
        text = json.dumps({name: value for name, value in values.items() if name != _COMMITTED_AT}).encode()
        return google_crc32c.value(text), len(text)
    checksum = size = 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            checksum, size = google_crc32c.extend(checksum, block), size + len(block)
    return checksum, size
