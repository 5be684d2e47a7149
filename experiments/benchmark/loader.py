"""Times reading: this loader, a plain read of the same bytes, and xarray from chunks of a whole globe.

  python -m experiments.benchmark loader                    the 0.25 degree case: 6 frames of 72 x 720 x 1440
  python -m experiments.benchmark loader --grid=32,64       a small one

A process reads what one device of the mesh holds of an input and a target, again and again; several processes read at
the same time what several devices hold. Sources take turns, so that whatever else the machine does meets them alike,
and the median counts; a turn is timed from its first request to its last byte. `of raw` compares with a plain read
(preadv, a thread per core, into the memory of as many samples), `x xarray` with xarray at its best. `read` is what
TensorStore counts over the bytes needed, `disk` what the kernel fetched over them. Cold: files are dropped from the
page cache (posix_fadvise) before each sample, which is then read alone.
"""

import argparse
import csv
import itertools
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments import command_line
from experiments.benchmark import stores
from weathermixer.archive import storage
from weathermixer.archive.archive import open_archive
from weathermixer.archive.boxes import find_boxes
from weathermixer.archive.layout import COMPRESSORS
from weathermixer.parallel.mesh import make_mesh

DEVICES = 8
MESHES = ((1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (2, 2), (4, 2), (1, 4), (2, 4), (1, 8))
MADE_FOR = ((1, 1), (8, 1), (4, 2), (8, 8))
ITEM_BYTES = 2
LIMIT_SECONDS = 1800  # for the meshes of one number of processes


class Turn(NamedTuple):
    """One turn of a source: seconds and CPU seconds per sample, bytes per sample by two counts."""

    seconds: float
    cpu_seconds: float
    read: float
    disk: float


def main(argv: list[str] | None = None) -> list[dict]:
    """Makes the stores in a temporary folder, measures, prints the tables; returns the rows."""
    args = make_parser().parse_args(argv)
    sizes = dict(times=args.frames, channels=args.channels, lat=args.grid[0], lon=args.grid[1])
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        began = time.perf_counter()
        stores.make_stores(folder, domain=args.made_for[0], tensor=args.made_for[1], **sizes)
        bytes_on_disk = {path.name: _size(path) for path in sorted(folder.iterdir())}
        print(
            f"{args.frames} frames of {args.channels} x {args.grid[0]} x {args.grid[1]}, archives made for "
            f"domain={args.made_for[0]}, tensor={args.made_for[1]}; written in {time.perf_counter() - began:.0f} s"
        )
        print("  ".join(f"{name}: {size / 1e6:.0f} MB" for name, size in bytes_on_disk.items()), flush=True)
        rows = []
        for processes, cold in [*((count, False) for count in args.processes), *([(1, True)] if args.cold else [])]:
            found = measure(folder, args, processes, cold=cold)
            report(found, header=not rows)
            rows += found
        print("per process; MB and GB of the 16-bit values that arrive")
    if not args.without_amplification:
        report_amplification(args)
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    print(f"{time.perf_counter() - began:.0f} s in all")
    return rows


def make_parser() -> command_line.Parser:
    """The command line's options."""
    parser = command_line.make_parser("experiments.benchmark loader", __doc__)
    add, count = parser.add_argument, dict(type=command_line.integer(1), metavar="N")
    cuts = dict(type=meshes, metavar="DOMAIN,TENSOR:...")
    about = "degrees between points, as 0.25, or latitudes,longitudes"
    add("--grid", type=command_line.grid, default=(720, 1440), help=about)
    add("--channels", **count, default=72, help="default: 72")
    add("--frames", **count, default=2 * (stores.AHEAD + 1), help="times in the stores")
    about = "the largest mesh that the archives are made for; default: 8,2"
    add("--made-for", type=command_line.pair, default=(8, 2), metavar="DOMAIN,TENSOR", help=about)
    add("--meshes", **cuts, default=MESHES, help="as 1,1:4,1; default: all of up to 8 devices")
    add("--compressed", **cuts, default=((4, 1),), help="meshes that compressed archives are read for too")
    about = "how many processes read at the same time; default: 1,2,4"
    add("--processes", type=command_line.integers, default=(1, 2, 4), metavar="N,...", help=about)
    add("--seconds", type=command_line.positive, default=0.3, help="how long a source reads at a time; default: 0.3")
    add("--rounds", **count, default=3, help="how often it is its turn; the median counts")
    add("--cold", **cuts, default=((1, 1), (4, 1), (8, 1), (4, 2)), help="meshes with an empty page cache too")
    about = "where the stores lie, deleted afterwards; default: the system's temporary folder"
    add("--folder", type=Path, metavar="DIR", help=about)
    add("--without-amplification", action="store_true", help="leave out the table of bytes read over bytes needed")
    add("--csv", type=command_line.output_file, metavar="FILE", help="the rows are written to this file")
    return parser


def meshes(text: str) -> tuple[tuple[int, ...], ...]:
    """((1, 1), (4, 1)) from "1,1:4,1"."""
    return tuple(command_line.pair(part) for part in text.split(":") if part)


def measure(folder: Path, args: argparse.Namespace, processes: int, *, cold: bool = False) -> list[dict]:
    """Rows of all meshes with at least so many devices, read by so many processes."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    cuts = [
        (cut, tuple(COMPRESSORS) if cut in args.compressed else ("none",))
        for cut in (args.cold if cold else args.meshes)
        if cut[0] * cut[1] >= processes
    ]
    options = (folder, cuts, args.seconds, args.rounds, cold)
    readers = [
        context.Process(target=_read, args=(process, barrier, results, *options), daemon=True)
        for process in range(processes)
    ]
    for reader in readers:
        reader.start()
    found: dict[tuple, list[Turn]] = {}
    for _ in range(processes):
        for key, turns in results.get(timeout=LIMIT_SECONDS).items():
            found.setdefault(key, []).extend(turns)
    for reader in readers:
        reader.join()
    rows = []
    for cut, _ in cuts:
        here = {
            name: Turn(*map(statistics.median, zip(*turns))) for (where, name), turns in found.items() if where == cut
        }
        needed = 2 * args.channels * args.grid[0] * args.grid[1] * ITEM_BYTES / (cut[0] * cut[1])
        best_xarray = min(turn.seconds for name, turn in here.items() if name.startswith("xarray"))
        for name, turn in here.items():
            ours = name.startswith("archive")
            rows.append(
                {
                    "domain": cut[0],
                    "tensor": cut[1],
                    "processes": processes,
                    "page_cache": "cold" if cold else "warm",
                    "source": name,
                    "samples_per_second": 1 / turn.seconds,
                    # what arrives, as 16-bit values, whatever the store holds
                    "megabytes_per_second": needed / turn.seconds / 1e6,
                    "cpu_seconds_per_gigabyte": turn.cpu_seconds / (needed / 1e9),
                    "read_over_needed": turn.read / needed if ours else None,
                    "disk_over_needed": turn.disk / needed,
                    "of_raw": here[name.replace("archive", "its bytes")].seconds / turn.seconds if ours else None,
                    "times_xarray": best_xarray / turn.seconds if ours else None,
                }
            )
    return rows


def _read(process: int, barrier, results, folder: Path, cuts, seconds: float, rounds: int, cold: bool) -> None:
    """One process: its turns, by mesh and source."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    turns: dict[tuple, list[Turn]] = {}
    for cut, compressors in cuts:
        mesh = make_mesh(1, *cut)
        device = mesh.devices.ravel()[process]
        (box,) = find_boxes(mesh, _frames_shape(folder), [device])
        ahead = 0 if cold else stores.AHEAD
        sources = stores.open_sources(folder, mesh, device, box, compressors=compressors, ahead=ahead)
        # the first turn fills the page cache, warms up, and tells how many samples take `seconds`
        counts = dict.fromkeys(sources, 1)
        for turn, (name, read) in itertools.product(range(rounds + 1), sources.items()):
            barrier.wait()
            taken = _take_turn(read, counts[name], folder if cold else None)
            counts[name] = max(1, round(seconds / taken.seconds))
            if turn:
                turns.setdefault((cut, name), []).append(taken)
    results.put(turns)


def _take_turn(read: stores.Read, count: int, dropped: Path | None) -> Turn:
    """Reads so many samples: ahead of each other, or each alone after its pages were dropped, which is not timed."""
    totals = np.zeros(4)
    for samples in [count] if dropped is None else [1] * count:
        if dropped is not None:
            stores.drop_from_page_cache(dropped)
        counters = (time.perf_counter, time.process_time, storage.bytes_read, stores.disk_bytes)
        before = np.array([counter() for counter in counters], float)
        read(samples)
        totals += np.array([counter() for counter in counters], float) - before
    return Turn(*(totals / count).tolist())


def _frames_shape(folder: Path) -> tuple[int, int, int, int]:
    archive = open_archive(str(folder / "archive-none"))
    return (1, len(archive.channels), *archive.grid.shape)


def report(rows: list[dict], *, header: bool) -> None:
    """Prints rows of the table of rates."""
    if header:
        print(
            f"\n{'domain x tensor':15} {'processes':>9} {'cache':>5}  {'source':16} {'samples/s':>9} {'MB/s':>6} "
            f"{'CPU s/GB':>8} {'read':>5} {'disk':>5} {'of raw':>6} {'x xarray':>8}"
        )
    for row in rows:
        read = "" if row["read_over_needed"] is None else f"{row['read_over_needed']:.2f}"
        of_raw = "" if row["of_raw"] is None else f"{row['of_raw']:.0%}"
        times = "" if row["times_xarray"] is None else f"{row['times_xarray']:.1f}"
        print(
            f"{row['domain']} x {row['tensor']:<11} {row['processes']:9} {row['page_cache']:>5}  {row['source']:16} "
            f"{row['samples_per_second']:9.2f} {row['megabytes_per_second']:6.0f} "
            f"{row['cpu_seconds_per_gigabyte']:8.2f} {read:>5} {row['disk_over_needed']:5.2f} {of_raw:>6} {times:>8}",
            flush=True,
        )


def report_amplification(args: argparse.Namespace) -> None:
    """Prints bytes read, as TensorStore counts them, over bytes needed: of the worst device, by mesh and archive."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    cuts = [cut for cut in itertools.product((1, 2, 4, 8), repeat=2) if cut[0] * cut[1] <= DEVICES]
    print("\nbytes read over bytes needed, one process per device; archive made for domain x tensor")
    print(f"{'data x domain x tensor':24}" + "".join(f"{a} x {b:<6}" for a, b in MADE_FOR) + "chunk = globe")
    frames = list(stores.make_frames(1, args.channels, *args.grid))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        archives = []
        for domain, tensor in MADE_FOR:
            path = Path(folder, f"{domain}-{tensor}")
            archives.append(stores.make_archive(path, frames, args.grid, args.channels, domain=domain, tensor=tensor))
        for domain, tensor in cuts:
            mesh = make_mesh(DEVICES // (domain * tensor), domain, tensor)
            some = mesh.devices[0].ravel()
            ratios = [max(stores.read_amplification(archive, mesh, one) for one in some) for archive in archives]
            name = " x ".join(str(size) for size in mesh.shape.values())
            # of a globe, channels alone can be chosen
            print(f"{name:24}" + "".join(f"{ratio:<10.2f}" for ratio in ratios) + f"{float(domain):.2f}", flush=True)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
