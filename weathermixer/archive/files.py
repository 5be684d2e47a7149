"""Reads of uncompressed chunks from files: straight into the buffers that go to the devices, with their checksums.

TensorStore reads into memory of its own, which it takes fresh each time, and copies from there: three times the work
of this. Here each chunk is one `preadv`. Whatever is compressed, remote or no union of chunks is left to TensorStore.
"""

import functools
import itertools
import os
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import numpy as np
from jaxtyping import Int

from weathermixer.archive import storage
from weathermixer.archive.archive import Archive
from weathermixer.archive.layout import CHECKSUM_BYTES, INDEX_BYTES

INDICES_KEPT = 64  # of shards, a few kB each
ABSENT = 2**64 - 1
_POOL = ThreadPoolExecutor(max(2, os.cpu_count() or 1), thread_name_prefix="files")  # more wait for each other


class Files:
    """The shards of an archive as files; the index of each is read once, and kept."""

    def __init__(self, archive: Archive):
        layout = archive.store.chunk_layout
        self._folder = Path(storage.kvstore_spec(archive.path)["path"], "fields", "c")
        self._times = layout.write_chunk.shape[0]
        _, self._group, self._band, lon = layout.read_chunk.shape
        self._row_bytes = lon * archive.store.dtype.numpy_dtype.itemsize
        self._channels = len(archive.channels)
        self._counts = (self._times, -(-self._channels // self._group), archive.grid.shape[0] // self._band)
        self._lock = threading.Lock()
        self._index = functools.lru_cache(INDICES_KEPT)(self._read_index)

    def holds(self, wanted: Int[np.ndarray, " n"], lats: tuple[int, int]) -> bool:
        """Whether a region, its channels and rows, is a union of chunks, each in order."""
        starts = wanted[:: self._group]
        whole = [np.arange(start, min(start + self._group, self._channels)) for start in starts]
        return bool(
            len(wanted)
            and not (lats[0] % self._band or lats[1] % self._band or np.any(starts % self._group))
            and np.array_equal(np.concatenate(whole), wanted)
            and self._group + 2 <= os.sysconf("SC_IOV_MAX")
        )

    def start(
        self, values: np.ndarray, time: int, wanted: Int[np.ndarray, " n"], lats: tuple[int, int]
    ) -> list[Future]:
        """Begins to read a region that `holds` into values [channel, lat, lon]; futures raise OSError or ValueError."""
        path = self._folder / str(time // self._times) / "0" / "0" / "0"
        reads = []
        for n, row in itertools.product(range(0, len(wanted), self._group), range(0, lats[1] - lats[0], self._band)):
            entry = time % self._times, int(wanted[n]) // self._group, (lats[0] + row) // self._band
            chunk = values[n : n + self._group, row : row + self._band]
            reads.append(_POOL.submit(self._read, path, entry, chunk))
        return reads

    def _read(self, path: Path, entry: tuple[int, int, int], values: np.ndarray) -> None:
        with self._lock:
            offset, length = map(int, self._index(path)[entry])
        if offset == ABSENT:
            raise ValueError(f"{path}: entry {entry} is missing")
        # rows of a channel lie together in the buffer, and channels of a chunk where it has all its rows
        parts = [values.reshape(-1)] if values.flags.c_contiguous else [part.reshape(-1) for part in values]
        rest = (self._group - len(values)) * self._band * self._row_bytes
        parts = [part.view(np.uint8) for part in parts] + [np.empty(rest, np.uint8)] * bool(rest)
        with path.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):  # read ahead of every chunk, a cold disk gave 1.6 times a band's bytes
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            _read_checked(file.fileno(), parts, offset, length, f"{path}: entry {entry}")

    def _read_index(self, path: Path) -> np.ndarray:
        """(offset, length) of each chunk [time, group, band] of a shard, from its file's end."""
        size = INDEX_BYTES * int(np.prod(self._counts))
        index = np.empty(size, np.uint8)
        try:
            with path.open("rb", buffering=0) as file:
                offset = file.seek(0, os.SEEK_END) - size - CHECKSUM_BYTES
                if offset < 0:
                    raise ValueError(f"{path} is cut short: it has no index")
                _read_checked(file.fileno(), [index], offset, size + CHECKSUM_BYTES, f"{path}: its index")
        except FileNotFoundError:
            raise ValueError(f"{path} is missing") from None
        return index.view("<u8").reshape(*self._counts, 2)


def open_files(archive: Archive) -> Files | None:
    """The archive's files, where it lies in files, uncompressed, in this machine's byte order."""
    plain = archive.attributes["compressor"] == "none" and storage.is_local(archive.path)
    return Files(archive) if plain and sys.byteorder == "little" else None


def _read_checked(file: int, parts: list[np.ndarray], offset: int, length: int, what: str) -> None:
    """Reads into parts one after the other, and a CRC-32C that follows them; ValueError where that differs."""
    stored = np.empty(CHECKSUM_BYTES, np.uint8)
    expected = sum(part.nbytes for part in parts) + CHECKSUM_BYTES
    found = os.preadv(file, [*parts, stored], offset) if length == expected else length
    storage.count_read(found)
    if found != expected:
        raise ValueError(f"{what} has {found} bytes, not {expected}")
    checksum = 0
    for part in parts:
        checksum = google_crc32c.extend(checksum, part)
    if checksum != int(stored.view("<u4")[0]):
        raise ValueError(f"{what} is damaged: its CRC-32C differs")
