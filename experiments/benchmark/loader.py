"""Times reading: this loader, a plain read of the same bytes, and xarray from chunks of a whole globe.

  python -m experiments.benchmark loader                    the 0.25 degree case: 4 frames of 72 x 720 x 1440
  python -m experiments.benchmark loader --grid=32,64       a small one

A process reads what one device of the mesh holds of an input and a target, again and again; several processes read at
the same time what several devices hold. Sources take turns, so that whatever else the machine does meets them alike,
and the median counts. `of raw` compares with the plain read (preadv, a thread per core), `x xarray` with xarray at its
best.
"""

import argparse
import contextlib
import csv
import itertools
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import jax

from experiments.benchmark import stores
from weathermixer.data.archive import open_archive
from weathermixer.data.boxes import find_boxes, read_amplification
from weathermixer.mesh import make_mesh
from weathermixer.variables import ChannelSet

DEVICES = 8


def main(argv: list[str] | None = None) -> list[dict]:
    """Makes the stores in a temporary folder, measures, prints the tables; returns the rows."""
    args = parse(argv)
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
            report(found)
            rows += found
    if not args.no_amplification:
        report_amplification(args)
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return rows


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmark loader",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add = parser.add_argument
    add("--grid", type=numbers, default=(720, 1440), help="latitudes,longitudes")
    add("--channels", type=int, default=72)
    add("--frames", type=int, default=4, help="times in the stores")
    add("--made_for", type=numbers, default=(8, 2), help="domain,tensor of the mesh that the archives are made for")
    add(
        "--meshes", type=meshes, default=((1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (4, 2)), help="1,1:4,1: domain,tensor"
    )
    add("--processes", type=numbers, default=(1, 2), help="how many processes read at the same time")
    add("--seconds", type=float, default=1.0, help="how long a source reads at a time")
    add("--rounds", type=int, default=3, help="how often it is its turn; the median counts")
    add("--cold", action="store_true", help="also with files dropped from the page cache before each sample")
    add("--folder", type=Path, help="where the stores lie, deleted afterwards; default: the system's temporary folder")
    add("--no_amplification", action="store_true", help="leave out the table of bytes read over bytes needed")
    add("--csv", type=Path, help="the rows are written to this file")
    return parser.parse_args(argv)


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def meshes(text: str) -> tuple[tuple[int, ...], ...]:
    return tuple(numbers(part) for part in text.split(":"))


def measure(folder: Path, args: argparse.Namespace, processes: int, *, cold: bool = False) -> list[dict]:
    """Rows of all meshes with at least so many devices, read by so many processes."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.SimpleQueue()
    cuts = [cut for cut in args.meshes if cut[0] * cut[1] >= processes]
    options = (folder, cuts, args.seconds, args.rounds, cold)
    readers = [
        context.Process(target=_read, args=(process, barrier, results, *options)) for process in range(processes)
    ]
    for reader in readers:
        reader.start()
    found: dict[tuple, list[tuple[float, float]]] = {}
    for _ in range(processes):
        for key, rates in results.get().items():
            found.setdefault(key, []).extend(rates)
    for reader in readers:
        reader.join()
    rows = []
    for cut in cuts:
        here = {name: rounds for (where, name), rounds in found.items() if where == cut}
        rate = {name: statistics.median(rate for rate, _ in rounds) for name, rounds in here.items()}
        cpu = {name: statistics.median(cpu for _, cpu in rounds) for name, rounds in here.items()}
        needed = 2 * args.channels * args.grid[0] * args.grid[1] * 2 / (cut[0] * cut[1])
        best_xarray = max((rate[name] for name in rate if name.startswith("xarray")), default=None)
        for name, samples in rate.items():
            raw = rate.get(name.replace("archive", "its bytes"))
            rows.append(
                {
                    "domain": cut[0],
                    "tensor": cut[1],
                    "processes": processes,
                    "page_cache": "cold" if cold else "warm",
                    "source": name,
                    "samples_per_second": samples,
                    # what arrives, as 16-bit values, whatever the store holds
                    "megabytes_per_second": samples * needed / 1e6,
                    "cpu_seconds_per_gigabyte": cpu[name] / (needed / 1e9),
                    "of_raw": samples / raw if name.startswith("archive") else None,
                    "times_xarray": samples / best_xarray if name.startswith("archive") else None,
                }
            )
    return rows


def _read(process: int, barrier, results, folder: Path, cuts, seconds: float, rounds: int, cold: bool) -> None:
    """One process: samples per second, and CPU seconds per sample, of each round, by mesh and source."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    rates: dict[tuple, list[tuple[float, float]]] = {}
    for cut in cuts:
        mesh = make_mesh(1, *cut)
        device = mesh.devices.ravel()[process]
        (box,) = find_boxes(mesh, _frames_shape(folder), [device])
        sources = stores.open_sources(folder, mesh, device, box)
        for turn, (name, source) in itertools.product(range(rounds + 1), sources.items()):
            barrier.wait()
            with contextlib.closing(source(cold)) as samples:
                rate = _rate(samples, seconds, folder if cold else None)
            if turn:  # the first one fills the page cache and warms up
                rates.setdefault((cut, name), []).append(rate)
    results.put(rates)


def _rate(samples, seconds: float, dropped: Path | None) -> tuple[float, float]:
    """Samples per second and CPU seconds per sample, over about so many seconds; dropping pages is left out."""
    if dropped is None:
        next(samples)
    count, spent, cpu = 0, 0.0, 0.0
    while spent < seconds:
        if dropped is not None:
            stores.drop_from_page_cache(dropped)
        before, cpu_before = time.perf_counter(), time.process_time()
        next(samples)
        spent += time.perf_counter() - before
        cpu += time.process_time() - cpu_before
        count += 1
    return count / spent, cpu / count


def _frames_shape(folder: Path) -> tuple[int, int, int, int]:
    archive = open_archive(str(folder / "archive-none"))
    return (1, len(archive.channels), *archive.grid.shape)


def report(rows: list[dict]) -> None:
    """Prints the table of rates."""
    print(
        f"\n{'domain x tensor':16} {'processes':>9} {'cache':>5}  {'source':18} {'samples/s':>9} {'MB/s':>7} "
        f"{'CPU s/GB':>8} {'of raw':>7} {'x xarray':>8}"
    )
    for row in rows:
        of_raw = "" if row["of_raw"] is None else f"{row['of_raw']:.0%}"
        times = "" if row["times_xarray"] is None else f"{row['times_xarray']:.1f}"
        print(
            f"{row['domain']} x {row['tensor']:<12} {row['processes']:9} {row['page_cache']:>5}  {row['source']:18} "
            f"{row['samples_per_second']:9.2f} {row['megabytes_per_second']:7.0f} "
            f"{row['cpu_seconds_per_gigabyte']:8.2f} {of_raw:>7} {times:>8}"
        )
    print("per process; MB and GB of 16-bit values that arrive", flush=True)


def report_amplification(args: argparse.Namespace) -> None:
    """Prints bytes read over bytes needed per process and mesh of 8, for archives made for several meshes."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    made_for = [(1, 1), (8, 1), (4, 2), (8, 8)]
    cuts = [cut for cut in itertools.product((1, 2, 4, 8), repeat=2) if cut[0] * cut[1] <= DEVICES]
    print("\nbytes read over bytes needed, one process per device; archive made for domain x tensor")
    print(f"{'data x domain x tensor':24}" + "".join(f"{a} x {b:<6}" for a, b in made_for) + "chunk = globe")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        archives = [
            stores.make_archive(
                Path(folder, f"{domain}-{tensor}"), [], args.grid, args.channels, domain=domain, tensor=tensor
            )
            for domain, tensor in made_for
        ]
        for domain, tensor in cuts:
            mesh = make_mesh(DEVICES // (domain * tensor), domain, tensor)
            ratios = [read_amplification(archive, ChannelSet(archive.channels), mesh) for archive in archives]
            name = " x ".join(str(size) for size in mesh.shape.values())
            print(f"{name:24}" + "".join(f"{ratio:<10.2f}" for ratio in ratios) + f"{float(domain):.2f}")


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
