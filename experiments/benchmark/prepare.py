"""Times preparing an archive, beside what the disk and the cores could do:

  python -m experiments.benchmark prepare                                 0.25 degrees, 69 channels, all cores
  python -m experiments.benchmark prepare --grid=32,64 --frames=64        a small one

The source is made up: a Zarr store with a chunk of lz4 for each time and variable, as WeatherBench 2's are. Rates are
of the float32 values that are read. disk: the source's files read and as many bytes as an archive's written, by as many
threads, with nothing done between. cores: what all workers' cores would do if they never waited, of the CPU time that a
GB takes at its best. share: of the lower of disk and cores. Files are dropped from the page cache before each turn, and
what is written is on the disk, in TMPDIR, when a turn ends. Starting processes and choosing the packing, from sixteen
frames however long the record, are not part of a turn. Memory is a worker's, and of a single one what this process
grows by.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from numcodecs import Blosc

from experiments import command_line
from experiments.benchmark import weather
from weathermixer import open_source, prepare_archive
from weathermixer.fields.variables import ERA5
from weathermixer.prepare.shards import make_shards
from weathermixer.prepare.sizes import plan_archive
from weathermixer.prepare.workers import Workers, open_workers

FRAMES_PER_WORKER = 8
CORES = len(os.sched_getaffinity(0))


def make_parser() -> command_line.Parser:
    parser = command_line.make_parser("experiments.benchmark prepare", __doc__)
    command_line.add_grid(parser, default=(720, 1440))
    about = f"times in the source, {FRAMES_PER_WORKER} for each worker at most are prepared; default: 8 for each core"
    options = dict(type=command_line.integer(1), default=FRAMES_PER_WORKER * CORES, metavar="N")
    parser.add_argument("--frames", **options, help=about)
    default = tuple(sorted({1, min(2, CORES), min(4, CORES), CORES}))
    about = "how many make it; default: 1, 2, 4 and all cores"
    parser.add_argument("--workers", type=command_line.integers, default=default, metavar="N,...", help=about)
    return parser


def main(argv: list[str] | None = None) -> pd.DataFrame:
    """Makes a source in a temporary folder, prepares it with one worker and more; prints and returns the table."""
    args, channels = make_parser().parse_args(argv), ERA5.dynamic
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = weather.make_frames(args.frames, len(channels), args.grid)
        weather.write_zarr(folder / "source.zarr", frames, channels, Blosc("lz4", 5))
        size = 4e-6 * len(channels) * args.grid[0] * args.grid[1]
        print(f"{args.frames} frames of {size:.0f} MB, {CORES} cores", flush=True)
        table = pd.DataFrame([time_prepare(folder, args.frames, count) for count in args.workers])
    table["cores"] = 1000 * table.workers.clip(upper=CORES) / table["CPU s/GB"].min()
    table["share"] = table["MB/s"] / table[["disk", "cores"]].min(axis=1)
    names = ["workers", "frames", "MB/s", "disk", "cores", "share", "CPU s/GB", "peak MB", "stated MB"]
    print(table[names].to_string(index=False, float_format="{:.2f}".format))
    return table


def time_prepare(folder: Path, frames: int, count: int) -> dict[str, float]:
    """A row of the table: of the source, the frames for so many workers, prepared by these, and by the disk alone."""
    times = min(frames, FRAMES_PER_WORKER * count)
    source = open_source(folder / "source.zarr").narrow(slice(0, times))
    weather.drop_from_page_cache(folder / "source.zarr")
    with open_workers(count) as opened:
        workers = Watched(opened.executor, opened.at_work)
        prepare_archive(source, folder / "archive", workers=workers, climatology=False)
    disk_seconds = time_disk(folder, times, count)
    shutil.rmtree(folder / "archive")
    plan = plan_archive(source, dtype="float16", domain=1, tensor=1, workers=count)
    gigabytes = plan.frame_bytes * times / 1e9
    row = {"workers": count, "frames": times, "CPU s/GB": workers.cpu_seconds / gigabytes}
    row |= {"MB/s": 1000 * gigabytes / workers.seconds, "disk": 1000 * gigabytes / disk_seconds}
    return row | {"peak MB": workers.peak / 1e6, "stated MB": plan.worker_bytes / 1e6}


def time_disk(folder: Path, frames: int, threads: int) -> float:
    """Seconds in which the frames' files are read and as many as the archive's written, with nothing done between."""
    files = [path for path in (folder / "source.zarr").rglob("*.*.*") if int(path.name.split(".")[0]) < frames]
    shards = sorted((folder / "archive" / "fields" / "c").glob("*/0/0/0"))
    content = shards[0].read_bytes()  # they are of one size

    def write(shard: Path) -> None:
        with shard.with_suffix(".copy").open("wb", buffering=0) as file:
            file.write(content)
            os.fsync(file.fileno())

    weather.drop_from_page_cache(folder / "source.zarr")
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda path: len(path.read_bytes()), files))
        list(pool.map(write, shards))
    return time.perf_counter() - start


class Watched(Workers):
    """Workers that note how long making shards took, by the clock and of CPU time, and how much memory."""

    def map(self, function: Callable[[Any], Any], tasks: Iterable[Any], **options) -> Iterator[Any]:
        if function is not make_shards:
            yield from super().map(function, tasks, **options)
            return
        size, start = 0, time.perf_counter()
        if self.executor is None:
            Path("/proc/self/clear_refs").write_text("5")  # its peak begins here
            size = memory("VmRSS")
        spent = []
        for count, *of_task in super().map(watch, tasks, **options):
            spent.append(of_task)
            yield count
        seconds, peaks = zip(*spent)
        vars(self).update(seconds=time.perf_counter() - start, cpu_seconds=sum(seconds), peak=max(peaks) - size)


def watch(task: Any) -> tuple[int, float, int]:
    """What make_shards returns in a worker, the CPU seconds that it took, and the most memory the worker has had."""
    start = time.process_time()
    return make_shards(task), time.process_time() - start, memory("VmHWM")


def memory(name: str) -> int:
    """Bytes that this process has, VmRSS, or has had at most, VmHWM."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) * 1024
