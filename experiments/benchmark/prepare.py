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
from weathermixer.fields.variables import ERA5
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.prepare.shards import make_shards
from weathermixer.prepare.sizes import plan_archive
from weathermixer.prepare.workers import Workers, open_workers
from weathermixer.sources.sources import Source, open_source

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
        source, size = open_source(folder / "source.zarr"), 4e-6 * len(channels) * args.grid[0] * args.grid[1]
        print(f"{args.frames} frames of {size:.0f} MB, {CORES} cores", flush=True)
        rows = []
        for count in args.workers:
            some = source.narrow(slice(0, min(args.frames, FRAMES_PER_WORKER * count)))
            rows.append({"disk": time_disk(folder, args.frames, size, count)} | time_prepare(some, folder, count))
    table = pd.DataFrame(rows)
    table["cores"] = 1000 * table.workers.clip(upper=CORES) / table["CPU s/GB"].min()
    table["share"] = table["MB/s"] / table[["disk", "cores"]].min(axis=1)
    names = ["workers", "frames", "MB/s", "disk", "cores", "share", "CPU s/GB", "peak MB", "stated MB"]
    print(table[names].to_string(index=False, float_format="{:.2f}".format))
    return table


def time_disk(folder: Path, frames: int, size: float, threads: int) -> float:
    """MB/s of float32 frames of `size` MB: their source is read and an archive written, with nothing done between."""
    files = sorted(path for path in (folder / "source.zarr").rglob("*.*.*") if path.is_file())
    some, out = files[:: max(1, frames // (FRAMES_PER_WORKER * threads))], folder / "written"
    stored = sum(path.stat().st_size for path in files)
    out.mkdir()

    def copy(path: Path) -> int:
        content = memoryview(path.read_bytes())
        left = int(len(content) / stored * frames * size * 1e6 / 2)  # of this file's share of a frame, in float16
        with (out / f"{path.parent.name}-{path.name}").open("wb") as file:
            while left > 0:
                left -= file.write(content[:left])
            file.flush()
            os.fsync(file.fileno())
        return len(content)

    weather.drop_from_page_cache(folder / "source.zarr")
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(copy, some))
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return done / stored * frames * size / seconds


def time_prepare(source: Source, folder: Path, count: int) -> dict[str, float]:
    """A row of the table: the source prepared by so many workers."""
    weather.drop_from_page_cache(folder / "source.zarr")
    with open_workers(count) as opened:
        workers = Watched(opened.executor, opened.at_work)
        prepare_archive(source, folder / "archive", workers=workers, climatology=False)
    shutil.rmtree(folder / "archive")
    plan = plan_archive(source, dtype="float16", domain=1, tensor=1, workers=count)
    gigabytes = plan.frame_bytes * len(source.times) / 1e9
    return {
        "workers": count,
        "frames": len(source.times),
        "MB/s": 1000 * gigabytes / workers.seconds,
        "CPU s/GB": workers.cpu_seconds / gigabytes,
        "peak MB": workers.peak / 1e6,
        "stated MB": plan.worker_bytes / 1e6,
    }


class Watched(Workers):
    """Workers that note how long making shards took, by the clock and of CPU time, and how much memory."""

    def map(self, function: Callable[[Any], Any], tasks: Iterable[Any], **options) -> Iterator[Any]:
        if function is not make_shards:
            yield from super().map(function, tasks, **options)
            return
        found, size = vars(self), 0
        if self.executor is None:
            Path("/proc/self/clear_refs").write_text("5")  # its peak begins here
            size = memory("self", "VmRSS")
        before, start = sum(map(cpu_seconds, self.processes)), time.perf_counter()
        yield from super().map(function, tasks, **options)
        found["seconds"] = time.perf_counter() - start
        found["cpu_seconds"] = sum(map(cpu_seconds, self.processes)) - before
        found["peak"] = max(memory(process, "VmHWM") for process in self.processes) - size

    @property
    def processes(self) -> list[int]:
        return list(self.executor._processes) if self.executor else [os.getpid()]


def cpu_seconds(process: int) -> float:
    """CPU time that a process has taken."""
    words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def memory(process: int | str, name: str) -> int:
    """Bytes that a process has, VmRSS, or has had at most, VmHWM."""
    return int(Path(f"/proc/{process}/status").read_text().split(f"{name}:")[1].split()[0]) * 1024
