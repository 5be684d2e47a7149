"""Times reading: this loader, a plain read of the same bytes, and xarray from chunks of a whole globe.

  python -m experiments.benchmark loader                    the 0.25 degree case: 6 frames of 72 x 720 x 1440
  python -m experiments.benchmark loader --grid=32,64       a small one

A process reads what one device of the mesh holds of an input and a target, again and again; several processes read at
the same time what several devices hold. Sources take turns, so that whatever else the machine does meets them alike,
and the median counts; a turn is timed from its first request to its last byte. `of raw` compares with a plain read
(preadv, a thread per core, into the memory of as many samples), `x xarray` with xarray at its best. `read` is what
TensorStore counts over the bytes needed, `disk` what the kernel fetched over them. Cold: files are dropped from the
page cache (posix_fadvise) before each sample, which is then read alone. Stores lie in TMPDIR while it runs. MB and GB
are of the 16-bit values that arrive.
"""

import contextlib
import functools
import itertools
import multiprocessing
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import xarray as xr
from jax.sharding import Mesh

from experiments import command_line
from experiments.benchmark import weather
from experiments.synthetic import simulate_devices
from weathermixer import Archive, ChannelSet, make_mesh, open_archive, open_source, prepare_archive
from weathermixer.archive import storage
from weathermixer.archive.boxes import Box, find_boxes, read_amplification
from weathermixer.archive.layout import COMPRESSORS
from weathermixer.archive.reader import Reader
from weathermixer.fields.variables import group_by_variable
from weathermixer.sources.sources import Source

DEVICES = 8
MESHES = ((1, 1), (4, 1), (8, 1), (4, 2))  # domain, tensor: whose devices' parts are read
PROCESSES = 1, 4  # how many read at the same time
MADE_FOR = (8, 2)  # the largest mesh that the archives are made for
MADE_FOR_OTHERS = ((1, 1), (8, 1), (4, 2), (8, 8))  # whose bytes are counted
AHEAD = 2  # samples in flight beside the one that is waited for, as the training's loader has them
FRAMES = 2 * (AHEAD + 1)
SECONDS, ROUNDS = 0.3, 3  # how long a source reads at a time, and how often it is its turn
LIMIT_SECONDS = 600  # that processes wait for each other
COUNTERS = {
    "seconds": time.perf_counter,
    "cpu_seconds": time.process_time,
    "read": storage.bytes_read,
    "disk": lambda: int(Path("/proc/self/io").read_text().split("\nread_bytes: ")[1].split()[0]),
}


def make_parser() -> command_line.Parser:
    parser = command_line.make_parser("experiments.benchmark loader", __doc__)
    command_line.add_grid(parser, default=(720, 1440))
    return parser


def main(argv: list[str] | None = None) -> pd.DataFrame:
    """Makes the stores in a temporary folder, measures, prints the tables; returns the rows."""
    args = make_parser().parse_args(argv)
    simulate_devices(DEVICES)
    with tempfile.TemporaryDirectory() as name:
        folder, tables = Path(name), []
        frames = weather.make_frames(FRAMES, len(weather.CHANNELS), args.grid)
        weather.write_zarr(folder / "globe", frames, weather.CHANNELS, "auto")
        source = open_source(folder / "globe")
        for compressor in COMPRESSORS:
            make_archive(source, folder / compressor, MADE_FOR, compressor=compressor)
        for processes, cold in [*((count, False) for count in PROCESSES), (1, True)]:
            rounds = ROUNDS * (3 if cold else 1)
            tables.append(measure(folder, processes, cold=cold, seconds=SECONDS, rounds=rounds))
            print("\n" + tables[-1].to_string(index=False, float_format="{:.2f}".format, na_rep=""), flush=True)
        print("\nbytes read over bytes needed, by data x domain x tensor and by what the archive is made for")
        print(report_amplification(source, folder / "made"))
    return pd.concat(tables)


def make_archive(source: Source, path: Path, made_for: tuple[int, int], **options: Any) -> Archive:
    """The source's archive for meshes up to (domain, tensor), a frame in each file."""
    options |= dict(domain=made_for[0], tensor=made_for[1], times_per_shard=1, climatology=False)
    return prepare_archive(source, path, **options)


def measure(folder: Path, processes: int, *, cold: bool, **options: Any) -> pd.DataFrame:
    """Rows of all meshes with at least so many devices, read by so many processes at the same time."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(processes, mp_context=context) as pool:
        options |= dict(cuts=[cut for cut in MESHES if cut[0] * cut[1] >= processes], cold=cold)
        take_turns = functools.partial(_take_turns, folder=folder, together=manager.Barrier(processes), **options)
        turns = list(itertools.chain.from_iterable(pool.map(take_turns, range(processes))))
    found = pd.DataFrame(turns).groupby(["domain", "tensor", "source"], sort=False).median()
    seconds, rows = found.seconds.to_dict(), []
    for (*cut, source), turn in found.iterrows():
        ours, needed = source in COMPRESSORS, turn.needed
        raw, *slow = (seconds.get((*cut, name)) for name in (f"{source}, raw", "xarray", "xarray, dask"))
        row = {"domain": cut[0], "tensor": cut[1], "processes": processes, "cache": "cold" if cold else "warm"}
        row |= {"source": source, "MB/s": needed / turn.seconds / 1e6, "CPU s/GB": turn.cpu_seconds / needed * 1e9}
        row |= {"read": turn["read"] / needed if ours else None, "disk": turn["disk"] / needed}
        row["of raw"] = raw / turn.seconds if ours else None
        row["x xarray"] = min(slow) / turn.seconds if ours else None
        rows.append(row)
    return pd.DataFrame(rows)


def _take_turns(
    process: int, folder: Path, together: Any, cuts: Sequence[tuple[int, int]], seconds: float, rounds: int, cold: bool
) -> list[dict[str, Any]]:
    """One process's turns: what they took per sample; cold, of one alone, after its pages were dropped."""
    simulate_devices(DEVICES)
    turns = []
    for cut in cuts:
        needed, sources = open_sources(folder, make_mesh(1, *cut), process, ahead=0 if cold else AHEAD)
        # the first turn fills the page cache, warms up, and tells how many samples take `seconds`
        counts = dict.fromkeys(sources, 1)
        for turn, (name, read) in itertools.product(range(rounds + 1), sources.items()):
            if cold:
                weather.drop_from_page_cache(folder)
            together.wait(LIMIT_SECONDS)
            before = [counter() for counter in COUNTERS.values()]
            read(counts[name])
            spent = [counter() - start for counter, start in zip(COUNTERS.values(), before)]
            taken = dict(zip(COUNTERS, np.divide(spent, counts[name])))
            if not cold:
                counts[name] = max(1, round(seconds / taken["seconds"]))
            if turn:
                turns.append({"domain": cut[0], "tensor": cut[1], "source": name, "needed": needed, **taken})
    return turns


def open_sources(folder: Path, mesh: Mesh, process: int, *, ahead: int) -> tuple[int, dict[str, Callable[[int], None]]]:
    """Bytes of a sample, a pair of frames in a device's box, and what is compared: functions that read so many."""
    device, sources = mesh.devices.ravel()[process], {}
    for name in COMPRESSORS:
        archive = open_archive(folder / name)
        reader = Reader(archive, ChannelSet(archive.channels), mesh, 1, devices=[device])
        (box,) = find_boxes(mesh, reader.shape, [device])
        frames = [find_chunks(archive, time, box) for time in range(len(archive.times))]
        size = max(chunks[:, 1].sum() for _, chunks in frames)
        sources[name] = functools.partial(read_archive, reader, ahead=ahead)
        sources[f"{name}, raw"] = functools.partial(read_raw, frames, np.zeros((AHEAD + 1, 2, size), np.uint8))
    for name, chunks in (("xarray", None), ("xarray, dask", {})):
        dataset, variables = xr.open_zarr(folder / "globe", chunks=chunks), group_by_variable(archive.channels)
        sources[name] = functools.partial(read_xarray, dataset, variables, box)
    values = (box.channels[1] - box.channels[0]) * (box.lats[1] - box.lats[0]) * archive.grid.shape[1]
    return 2 * values * archive.store.dtype.numpy_dtype.itemsize, sources


def _pairs(times: int, count: int) -> Iterator[int]:
    """First times of `count` pairs, round and round; those in flight have no frame in common, which is read once."""
    return itertools.islice(itertools.cycle(range(0, times - 1, 2)), count)


def read_archive(reader: Reader, count: int, *, ahead: int) -> None:
    """Reads pairs of frames as the loader does, `ahead` more in flight, onto a device, to the last."""
    here, pending = jax.local_devices()[0], deque()

    def finish() -> None:
        arrays = reader.wait(pending.popleft(), threading.Event())
        jax.block_until_ready([jax.device_put(buffer, here) for parts in arrays for _, buffer in parts])

    for first in _pairs(len(reader.archive.times), count):
        pending.append(reader.start([np.array([first]), np.array([first + 1])]))
        if len(pending) > ahead:
            finish()
    while pending:
        finish()


def find_chunks(archive: Archive, time: int, box: Box) -> tuple[Path, np.ndarray]:
    """A shard's file and the (offset, length) of each chunk that holds a part of a box, from its index."""
    _, group, band, _ = archive.store.chunk_layout.read_chunk.shape
    path = Path(archive.path, "fields", "c", str(time), "0", "0", "0")
    counts = (-(-len(archive.channels) // group), archive.grid.shape[0] // band)
    index = np.frombuffer(path.read_bytes()[-4 - 16 * counts[0] * counts[1] : -4], np.int64).reshape(*counts, 2)
    (first, last), (start, stop) = box.channels, box.lats
    return path, index[first // group : -(-last // group), start // band : -(-stop // band)].reshape(-1, 2)


def read_raw(frames: Sequence[tuple[Path, np.ndarray]], buffers: np.ndarray, count: int) -> None:
    """Plain reads of the bytes of the same chunks: preadv, a thread per core, into the memory of AHEAD + 1 samples."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool, contextlib.ExitStack() as files:
        for first, sample in zip(_pairs(len(frames), count), itertools.cycle(buffers)):
            parts = []
            for (path, chunks), buffer in zip(frames[first : first + 2], sample):
                file = files.enter_context(path.open("rb", buffering=0)).fileno()
                pieces = np.split(buffer, np.cumsum(chunks[:, 1]))
                parts += [(file, [piece], offset) for piece, offset in zip(pieces, chunks[:, 0].tolist())]
            if sum(pool.map(os.preadv, *zip(*parts))) != sum(piece.size for _, (piece,), _ in parts):
                raise OSError(f"{path} could not be read whole")


def read_xarray(dataset: xr.Dataset, variables: Mapping[str, Sequence[int]], box: Box, count: int) -> None:
    """Loads the same box of pairs of frames through xarray and zarr-python, lazily indexed or through dask."""
    for first in _pairs(dataset.sizes["time"], count):
        for name, indices in variables.items():
            inside = [level for level, index in enumerate(indices) if box.channels[0] <= index < box.channels[1]]
            if inside:
                part = dataset[name].isel(time=slice(first, first + 2), latitude=slice(*box.lats))
                (part[:, inside[0] : inside[-1] + 1] if "level" in part.dims else part).load()


def report_amplification(source: Source, folder: Path) -> str:
    """Bytes read over bytes needed, of the worst device: a row for each mesh, a column for each archive."""
    table, some = pd.DataFrame(), source.narrow(slice(0, 2))
    for made_for in MADE_FOR_OTHERS:
        column = " x ".join(map(str, made_for))
        archive = make_archive(some, folder / column, made_for)
        for domain, tensor in itertools.product((1, 2, 4, 8), repeat=2):
            if domain * tensor <= DEVICES:
                mesh = make_mesh(-1, domain, tensor)
                name = " x ".join(map(str, mesh.shape.values()))
                channels = ChannelSet(archive.channels, multiple=tensor)
                table.loc[name, column] = read_amplification(archive, channels, mesh)
    table["chunk = globe"] = [float(name.split(" x ")[1]) for name in table.index]  # channels alone can be chosen
    return table.to_string(float_format="{:.2f}".format)
