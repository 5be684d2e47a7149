"""Reads a whole archive again and finds what differs from what was prepared, by time and channel."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from weathermixer.archive import storage
from weathermixer.archive.archive import CLIMATOLOGY, Archive, open_archive
from weathermixer.archive.checksums import checksums, digest_archive
from weathermixer.archive.progress import Progress
from weathermixer.fields.variables import group_by_variable

BLOCK_BYTES = 64 * 2**20  # read at once by one thread
THREADS = 4


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
    times, channels, lat, lon = archive.store.shape
    step = max(1, BLOCK_BYTES // (channels * lat * lon * archive.store.dtype.numpy_dtype.itemsize))
    blocks = [np.arange(start, min(start + step, times)) for start in range(0, times, step)]
    frame_bytes = channels * lat * lon * archive.store.dtype.numpy_dtype.itemsize
    progress = Progress("verify", total=times, unit="times", bytes_each=frame_bytes)
    with progress, ThreadPoolExecutor(THREADS) as pool:
        for block, found in zip(blocks, pool.map(lambda block: _verify_times(archive, block, sums), blocks)):
            findings += found
            progress.update(len(block))
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
        for hour in range(store.shape[0]):
            problems = ((day, _find_problem(store[hour, day])) for day in range(store.shape[1]))
            day, problem = next(((day, problem) for day, problem in problems if problem), (0, ""))
            findings += [f"{CLIMATOLOGY}: {variable}, hour {hour}, day {day + 1}: {problem}"] * bool(problem)
    return findings


def _find_problem(store: storage.Array) -> str:
    """Why a part of an array cannot be read, "" where it can."""
    try:
        store.read().result()
    except Exception as error:
        return f"cannot be read: {str(error).splitlines()[0]}"
    return ""


def _verify_times(archive: Archive, block: np.ndarray, sums: np.ndarray) -> list[str]:
    try:
        values = archive.store[block[0] : block[-1] + 1].read().result()
    except Exception:
        if len(block) > 1:
            return [finding for time in block for finding in _verify_times(archive, np.array([time]), sums)]
        return _find_chunks(archive, int(block[0]))
    differs = checksums(values) != sums[block]
    return [
        f"{archive.channels[channel].name} at {_when(archive, int(block[time]))}: its values changed"
        for time, channel in np.argwhere(differs)
    ]


def _find_chunks(archive: Archive, time: int) -> list[str]:
    """The chunks of one time that cannot be read, by channels and latitudes."""
    _, group, band, _ = archive.store.chunk_layout.read_chunk.shape
    _, channels, lat, _ = archive.store.shape
    findings = []
    for channel in range(0, channels, group):
        for row in range(0, lat, band):
            some, rows = slice(channel, min(channel + group, channels)), slice(row, min(row + band, lat))
            if problem := _find_problem(archive.store[time, some, rows]):
                names = [channel.name for channel in archive.channels[some]]
                names = ", ".join(names) + " (one chunk)" * (len(names) > 1)
                ends = archive.grid.latitude[rows][[0, -1]]
                where = f"latitudes {ends[0]:g} to {ends[1]:g}"
                findings.append(f"{names} at {_when(archive, time)}, {where}: {problem}")
    return findings


def _when(archive: Archive, time: int) -> str:
    return str(archive.times[time].astype("datetime64[h]"))
