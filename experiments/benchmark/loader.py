"""Times reading: this loader, a plain read of the same bytes, and xarray from chunks of a whole globe.

  python -m experiments.benchmark loader                    the 0.25 degree case: 6 frames of 72 x 720 x 1440
  python -m experiments.benchmark loader --grid=32,64       a small one

A process reads what one device of the mesh holds of an input and a target, again and again; several processes read at
the same time what several devices hold. Sources take turns, so that whatever else the machine does meets them alike,
and the median counts; a turn is timed from its first request to its last byte. `of raw` compares with a plain read
(preadv, a thread per core, into the memory of as many samples), `x xarray` with xarray at its best. `read` is what
TensorStore counts over the bytes needed, `disk` what the kernel fetched over them. Cold: files are dropped from the
page cache (posix_fadvise) before each sample, which is then read alone. MB and GB are of the 16-bit values that arrive.
"""

import argparse
import contextlib
import functools
import itertools
import multiprocessing
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
from weathermixer.archive import storage
from weathermixer.archive.archive import Archive, open_archive
from weathermixer.archive.boxes import Box, find_boxes, read_amplification
from weathermixer.archive.layout import COMPRESSORS
from weathermixer.archive.reader import Reader
from weathermixer.fields.variables import Channel, ChannelSet
from weathermixer.parallel.mesh import make_mesh

DEVICES = 8
MESHES = ((1, 1), (4, 1), (8, 1), (4, 2))
MADE_FOR = ((1, 1), (8, 1), (4, 2), (8, 8))
AHEAD = 2  # samples in flight beside the one that is waited for, as the training's loader has them
ITEM_BYTES = 2
LIMIT_SECONDS = 600  # that processes wait for each other
COUNTERS = {
    "seconds": time.perf_counter,
    "cpu_seconds": time.process_time,
    "read": storage.bytes_read,
    "disk": lambda: int(Path("/proc/self/io").read_text().split("\nread_bytes: ")[1].split()[0]),
}


def make_parser() -> command_line.Parser:
    """The command line's options."""
    parser = command_line.make_parser("experiments.benchmark loader", __doc__)
    add, count = parser.add_argument, dict(type=command_line.integer(1), metavar="N")
    command_line.add_grid(parser, default=(720, 1440))
    add("--channels", **count, default=72, help="default: 72")
    add("--frames", **count, default=2 * (AHEAD + 1), help="times in the stores")
    about = "the largest mesh that the archives are made for; default: 8,2"
    add("--made-for", type=command_line.pair, default=(8, 2), metavar="DOMAIN,TENSOR", help=about)
    about = "whose devices' parts are read, as 1,1:4,1; default: 1,1:4,1:8,1:4,2"
    add("--meshes", type=meshes, default=MESHES, metavar="DOMAIN,TENSOR:...", help=about)
    about = "how many processes read at the same time; default: 1,4"
    add("--processes", type=command_line.integers, default=(1, 4), metavar="N,...", help=about)
    add("--seconds", type=command_line.positive, default=0.3, help="how long a source reads at a time; default: 0.3")
    add("--rounds", **count, default=3, help="how often it is its turn; the median counts")
    about = "where the stores lie, deleted afterwards; default: the system's temporary folder"
    add("--folder", type=Path, metavar="DIR", help=about)
    add("--csv", type=command_line.output_file, metavar="FILE", help="the rows are written to this file")
    return parser


def meshes(text: str) -> tuple[tuple[int, ...], ...]:
    """((1, 1), (4, 1)) from "1,1:4,1"."""
    return tuple(command_line.pair(part) for part in text.split(":"))


def main(argv: list[str] | None = None) -> pd.DataFrame:
    """Makes the stores in a temporary folder, measures, prints the tables; returns the rows."""
    args = make_parser().parse_args(argv)
    most = max(domain * tensor for domain, tensor in args.meshes)
    if max(args.processes) > most:
        raise ValueError(f"--processes={max(args.processes)}: no mesh of --meshes has so many devices: at most {most}")
    simulate_devices()
    channels = weather.make_channels(args.channels)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        frames = list(weather.make_frames(args.frames, args.channels, args.grid))
        for compressor in COMPRESSORS:
            weather.write_archive(folder / compressor, frames, channels, mesh=args.made_for, compressor=compressor)
        weather.write_zarr(folder / "globe", frames[:2], channels, "auto")  # nothing of a pair is kept: one pair does
        for path in sorted(folder.iterdir()):
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            print(f"{path.name}: {size / 1e6:.0f} MB", flush=True)
        tables = []
        for processes, cold in [*((count, False) for count in args.processes), (1, True)]:
            tables.append(measure(folder, args, processes, cold=cold))
            print("\n" + tables[-1].to_string(index=False, float_format="{:.2f}".format, na_rep=""), flush=True)
        rows = pd.concat(tables)
        if args.csv:
            rows.to_csv(args.csv, index=False)
        print("\nbytes read over bytes needed, by data x domain x tensor and by what the archive is made for")
        print(report_amplification(folder / "made", frames[:1], channels))
    return rows


def simulate_devices() -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)


def measure(folder: Path, args: argparse.Namespace, processes: int, *, cold: bool) -> pd.DataFrame:
    """Rows of all meshes with at least so many devices, read by so many processes at the same time."""
    cuts = [cut for cut in args.meshes if cut[0] * cut[1] >= processes]
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(processes, mp_context=context) as pool:
        options = dict(cuts=cuts, seconds=args.seconds, rounds=args.rounds, cold=cold)
        take_turns = functools.partial(_take_turns, folder=folder, together=manager.Barrier(processes), **options)
        turns = list(itertools.chain.from_iterable(pool.map(take_turns, range(processes))))
    found = pd.DataFrame(turns).groupby(["domain", "tensor", "source"], sort=False).median()
    rows = []
    for (domain, tensor, source), turn in found.iterrows():
        here, ours = found.seconds[domain, tensor], source in COMPRESSORS
        needed = 2 * args.channels * args.grid[0] * args.grid[1] * ITEM_BYTES / (domain * tensor)
        row = {"domain": domain, "tensor": tensor, "processes": processes, "cache": "cold" if cold else "warm"}
        row |= {"source": source, "MB/s": needed / turn.seconds / 1e6, "CPU s/GB": turn.cpu_seconds / needed * 1e9}
        row |= {"read": turn["read"] / needed if ours else None, "disk": turn["disk"] / needed}
        row["of raw"] = here[f"{source}, raw"] / turn.seconds if ours else None
        row["x xarray"] = min(here["xarray"], here["xarray, dask"]) / turn.seconds if ours else None
        rows.append(row)
    return pd.DataFrame(rows)


def _take_turns(
    process: int, folder: Path, together: Any, cuts: Sequence[tuple[int, int]], seconds: float, rounds: int, cold: bool
) -> list[dict[str, Any]]:
    """One process's turns: what they took per sample."""
    simulate_devices()
    turns = []
    for cut in cuts:
        sources = open_sources(folder, make_mesh(1, *cut), process, ahead=0 if cold else AHEAD)
        # the first turn fills the page cache, warms up, and tells how many samples take `seconds`
        counts = dict.fromkeys(sources, 1)
        for turn, (name, read) in itertools.product(range(rounds + 1), sources.items()):
            together.wait(LIMIT_SECONDS)
            taken = _take_turn(read, counts[name], folder if cold else None)
            counts[name] = max(1, round(seconds / taken["seconds"]))
            if turn:
                turns.append({"domain": cut[0], "tensor": cut[1], "source": name, **taken})
    return turns


def _take_turn(read: Callable[[int], None], count: int, dropped: Path | None) -> dict[str, float]:
    """Reads so many samples: ahead of each other, or each alone after its pages were dropped, which is not timed."""
    totals = np.zeros(len(COUNTERS))
    for samples in [count] if dropped is None else [1] * count:
        if dropped is not None:
            weather.drop_from_page_cache(dropped)
        before = np.array([counter() for counter in COUNTERS.values()], float)
        read(samples)
        totals += np.array([counter() for counter in COUNTERS.values()], float) - before
    return dict(zip(COUNTERS, totals / count))


def open_sources(folder: Path, mesh: Mesh, process: int, *, ahead: int) -> dict[str, Callable[[int], None]]:
    """What is compared, by name: functions that read so many samples, a pair of frames in a device's box each."""
    device, sources = mesh.devices.ravel()[process], {}
    for name in COMPRESSORS:
        archive = open_archive(folder / name)
        reader = Reader(archive, ChannelSet(archive.channels), mesh, 1, spare=2 * (AHEAD + 2), devices=[device])
        (box,) = find_boxes(mesh, reader.shape, [device])
        frames = [find_chunks(archive, time, box) for time in range(len(archive.times))]
        size = max(chunks[:, 1].sum() for _, chunks in frames)
        sources[name] = functools.partial(read_archive, reader, ahead=ahead)
        sources[f"{name}, raw"] = functools.partial(read_raw, frames, np.zeros((AHEAD + 1, 2, size), np.uint8))
    for name, chunks in (("xarray", None), ("xarray, dask", {})):
        dataset, extents = xr.open_zarr(folder / "globe", chunks=chunks), weather.find_extents(archive.channels)
        sources[name] = functools.partial(read_xarray, dataset, extents, box)
    return sources


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


def read_xarray(dataset: xr.Dataset, extents: dict[str, tuple[int, int]], box: Box, count: int) -> None:
    """Loads the same box of pairs of frames through xarray and zarr-python, lazily indexed or through dask."""
    for first in _pairs(dataset.sizes["time"], count):
        for name, (start, stop) in extents.items():
            begin, end = max(start, box.channels[0]), min(stop, box.channels[1])
            if begin < end:
                part = dataset[name].isel(time=slice(first, first + 2), latitude=slice(*box.lats))
                (part[:, begin - start : end - start] if "level" in part.dims else part).load()


def report_amplification(folder: Path, frames: Sequence[np.ndarray], channels: tuple[Channel, ...]) -> str:
    """Bytes read over bytes needed, of the worst device: a row for each mesh, a column for each archive."""
    table = pd.DataFrame()
    for made_for in MADE_FOR:
        path = folder / " x ".join(map(str, made_for))
        archive = weather.write_archive(path, frames, channels, mesh=made_for, compressor="none")
        for domain, tensor in itertools.product((1, 2, 4, 8), repeat=2):
            if domain * tensor <= DEVICES:
                mesh = make_mesh(-1, domain, tensor)
                name = " x ".join(map(str, mesh.shape.values()))
                table.loc[name, path.name] = read_amplification(archive, ChannelSet(channels), mesh)
    table["chunk = globe"] = [float(name.split(" x ")[1]) for name in table.index]  # channels alone can be chosen
    return table.to_string(float_format="{:.2f}".format)
