"""Checksums of what an archive holds; and an archive read again, to find what differs, by time and channel."""

import hashlib
import itertools
import os
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import UInt32

from weathermixer.archive import storage
from weathermixer.archive.archive import CLIMATOLOGY, NUMERIC, Archive, open_archive
from weathermixer.archive.progress import make_progress
from weathermixer.fields.variables import group_by_variable

BLOCK_BYTES = 64 * 2**20  # read at once by one thread
THREADS = 4


def checksums(stored: np.ndarray) -> UInt32[np.ndarray, "time channel"]:
    """CRC-32 of each channel's field at each time, over its stored bytes, little endian."""
    stored = np.ascontiguousarray(stored, stored.dtype.newbyteorder("<"))
    time, channel, *_ = stored.shape
    sums = [zlib.crc32(stored[t, c]) for t in range(time) for c in range(channel)]
    return np.array(sums, np.uint32).reshape(time, channel)


def digest_archive(target: str) -> tuple[str, dict[str, str]]:
    """(one SHA-256 over all that an archive holds, the manifest: a SHA-256 for each of its arrays but `fields`).

    `checksum`, the CRC-32 of every field, stands for those. Digests are of values: they do not depend on compression,
    on the layout of chunks, or on when an archive was made.
    """
    manifest = {}
    for name in (*NUMERIC, "checksum"):
        values = storage.read_array(storage.join(target, name)).result()
        header = f"{values.dtype.name} {values.shape}\n".encode()
        content = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
        manifest[name] = hashlib.sha256(header + content).hexdigest()
    for name in ("channel", "static_channel"):
        lines = "\n".join(storage.read_text_array(storage.join(target, name)))
        manifest[name] = hashlib.sha256(lines.encode()).hexdigest()
    whole = "\n".join(f"{name} {digest}" for name, digest in sorted(manifest.items()))
    return hashlib.sha256(whole.encode()).hexdigest(), manifest


def verify_archive(path: str | os.PathLike) -> list[str]:
    """What is wrong with an archive, a line for each finding; nothing where every byte is as it was prepared.

    Every chunk is read and decoded, which checks its own CRC-32C, and every field's values are compared with the
    CRC-32 taken while preparing. Memory: THREADS blocks of BLOCK_BYTES and as much again to decode them.

    >>> weathermixer.verify_archive("dry.archive")
    []
    """
    path = os.fspath(path)
    try:
        archive = open_archive(path)
        whole, manifest = digest_archive(path)
    except Exception as error:
        return [f"{path} cannot be opened: {error}"]
    recorded = archive.attributes["manifest"]
    findings = [f"{name}: its values changed" for name in recorded if manifest.get(name) != recorded[name]]
    if not findings and whole != archive.attributes["checksum"]:
        findings.append("the archive's checksum is not that of its manifest: its attributes changed")
    sums = storage.read_array(storage.join(path, "checksum")).result()
    times = len(archive.times)
    frame_bytes = archive.store[0].size * archive.store.dtype.numpy_dtype.itemsize
    step = max(1, BLOCK_BYTES // frame_bytes)
    blocks = [slice(start, min(start + step, times)) for start in range(0, times, step)]
    progress = make_progress("verify", total=times, unit="times", bytes_each=frame_bytes)
    with progress, ThreadPoolExecutor(THREADS) as pool:
        for block, found in zip(blocks, pool.map(lambda block: _verify_times(archive, block, sums), blocks)):
            findings += found
            progress.update(block.stop - block.start)
    return findings + _verify_climatology(archive)


def describe_missing(archive: Archive) -> list[str]:
    """A line for each channel that lacks values: how many, and whether the same points do at all times."""
    lines, size, times = [], int(np.prod(archive.grid.shape)), len(archive.times)
    for name, found in archive.attributes["missing"].items():
        if changed := found["times_of_other_points"]:
            what = f"{found['values']} values, at {changed} of {times} times other points than at the first"
        else:
            what = f"{found['values'] // times} of {size} values, the same points at all times"
        lines.append(f"{name} lacks {what}")
    return lines


def _verify_climatology(archive: Archive) -> list[str]:
    """Reads the climatology, where there is one, day by day: its chunks have their own checksums."""
    folder = storage.join(archive.path, CLIMATOLOGY)
    if storage.read_json(storage.open_folder(folder), "zarr.json") is None:
        return []
    findings = []
    for variable in group_by_variable(archive.channels):
        store = storage.open_array(storage.join(folder, variable))
        for hour, day in np.ndindex(*store.shape[:2]):
            if problem := _find_problem(store[hour, day]):
                findings.append(f"{CLIMATOLOGY}: {variable}, hour {hour}, day {day + 1}: {problem}")
    return findings


def _find_problem(store: storage.Array) -> str:
    """Why a part of an array cannot be read, "" where it can."""
    try:
        store.read().result()
    except Exception as error:
        return f"cannot be read: {str(error).splitlines()[0]}"
    return ""


def _verify_times(archive: Archive, block: slice, sums: np.ndarray) -> list[str]:
    try:
        differs = checksums(archive.store[block].read().result()) != sums[block]
    except Exception:
        times = range(block.start, block.stop)
        if len(times) > 1:
            return [finding for t in times for finding in _verify_times(archive, slice(t, t + 1), sums)]
        return _find_chunks(archive, block.start)
    return [
        f"{archive.channels[channel].name} at {archive.times[block][time]:.13}: its values changed"
        for time, channel in np.argwhere(differs)
    ]


def _find_chunks(archive: Archive, time: int) -> list[str]:
    """The chunks of one time that cannot be read, by channels and latitudes."""
    _, group, band, _ = archive.store.chunk_layout.read_chunk.shape
    _, channels, lat, _ = archive.store.shape
    findings = []
    for channel, row in itertools.product(range(0, channels, group), range(0, lat, band)):
        some, rows = slice(channel, min(channel + group, channels)), slice(row, row + band)
        if problem := _find_problem(archive.store[time, some, rows]):
            names = ", ".join(channel.name for channel in archive.channels[some])
            chunk = " (one chunk)" * (some.stop - some.start > 1)
            ends = archive.grid.latitude[rows][[0, -1]]
            where = f"latitudes {ends[0]:g} to {ends[1]:g}"
            findings.append(f"{names}{chunk} at {archive.times[time]:.13}, {where}: {problem}")
    return findings
