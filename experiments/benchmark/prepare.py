"""Times preparing an archive, beside what the disk and the cores could do:

  python -m experiments.benchmark prepare                                 0.25 degrees, 69 channels, all cores
  python -m experiments.benchmark prepare --grid=32,64 --frames=64        a small one

The source is made up: a Zarr store with a chunk of lz4 for each time and variable, as WeatherBench 2's are. Rates are
of the float32 values that are read. disk: the source's files read and as many bytes as an archive's written, by as many
threads, with nothing done between. cores: what all workers' cores would do if they never waited, of the CPU time that a
GB takes at its best. share: of the lower of disk and cores. Files are dropped from the page cache before each turn, and
what is written is on the disk when a turn ends. Starting processes and choosing the packing, from sixteen frames
however long the record, are not part of a turn. Memory is a worker's, and of a single one what this process grows by.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import Blosc, blosc

from experiments import command_line
from experiments.benchmark import stores
from weathermixer.fields.ranges import plausible_range
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.prepare.shards import make_shards
from weathermixer.prepare.sizes import plan_archive
from weathermixer.prepare.workers import Workers, open_workers
from weathermixer.sources.sources import Source, open_source

FRAMES_MADE = 8  # the others are copies of them, in files of their own
FRAMES_PER_WORKER = 8
CODEC = Blosc("lz4", 5, Blosc.SHUFFLE)
CORES = len(os.sched_getaffinity(0))


def main(argv: list[str] | None = None) -> list[dict]:
    """Makes a source in a temporary folder, prepares it with one worker and more; prints and returns the table."""
    args = make_parser().parse_args(argv)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        make_source(folder / "source.zarr", args.frames, args.channels, *args.grid)
        source = open_source(folder / "source.zarr")
        files = sorted(path for path in (folder / "source.zarr").rglob("*.*.*") if path.is_file())
        stored = sum(path.stat().st_size for path in files)
        size = 4 * args.channels * args.grid[0] * args.grid[1]
        print(f"{args.frames} frames of {size / 1e6:.0f} MB, as lz4 {stored / args.frames / 1e6:.0f} MB each; "
              f"made in {time.perf_counter() - began:.0f} s, {CORES} cores", flush=True)  # fmt: skip
        disk = {count: time_disk(folder, files, args.frames, size, count) for count in args.workers}
        decode = time_decoding(files)
        rows = [
            time_prepare(source.narrow(slice(0, min(args.frames, FRAMES_PER_WORKER * count))), folder, count)
            for count in args.workers
        ]
    best = min(row["cpu_seconds_per_gigabyte"] for row in rows)
    print(
        f"one core decodes {decode:.0f} MB/s; a plain read of cold files {disk[max(disk)][0]:.0f} MB/s of the disk's\n"
    )
    print("workers  frames    MB/s    disk   cores   share  CPU s/GB  cores busy  peak MB  stated MB")
    for row in rows:
        row["disk"], row["cores"] = disk[row["workers"]][1], 1000 * min(row["workers"], CORES) / best
        row["share"] = row["megabytes_per_second"] / min(row["disk"], row["cores"])
        rates = "{megabytes_per_second:6.0f}  {disk:6.0f}  {cores:6.0f}  {share:6.0%}  {cpu_seconds_per_gigabyte:8.2f}"
        print(("{workers:7}  {frames:6}  " + rates + "  {cores_busy:10.1f}  {peak:7.0f}  {stated:9.0f}").format(**row))
    print(f"{time.perf_counter() - began:.0f} s in all")
    return rows


def make_parser() -> command_line.Parser:
    """The command line's options."""
    parser = command_line.make_parser("experiments.benchmark prepare", __doc__)
    add, count = parser.add_argument, dict(type=command_line.integer(1), metavar="N")
    about = "degrees between points, as 0.25, or latitudes,longitudes"
    add("--grid", type=command_line.grid, default=(720, 1440), help=about)
    add("--channels", **count, default=69, help="default: 69")
    about = f"times in the source, {FRAMES_PER_WORKER} for each worker at most are prepared; default: 8 for each core"
    add("--frames", **count, default=FRAMES_PER_WORKER * CORES, help=about)
    default = tuple(sorted({1, min(2, CORES), min(4, CORES), CORES}))
    about = "how many make it; default: 1, 2, 4 and all cores"
    add("--workers", type=command_line.integers, default=default, metavar="N,...", help=about)
    about = "where source and archive lie, deleted afterwards; default: the system's temporary folder"
    add("--folder", type=Path, metavar="DIR", help=about)
    return parser


def make_source(path: Path, frames: int, channels: int, lat: int, lon: int) -> None:
    """Writes a Zarr store, version 2: a chunk is one time of a variable, all its levels and the globe."""
    channel_set, grid = stores.make_channels(channels), stores.make_grid(lat, lon)
    levels = sorted({channel.level_hpa for channel in channel_set.dynamic} - {None})
    group = zarr.create_group(path, zarr_format=2)

    def create(name: str, dims: list[str], shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str, **attributes):
        attributes |= {"_ARRAY_DIMENSIONS": dims}
        options = dict(compressors=CODEC, fill_value=None, attributes=attributes)
        return group.create_array(name, shape=shape, chunks=chunks, dtype=dtype, **options)

    for name, values, units in (
        ("time", np.arange(frames) * 6, "hours since 2000-01-01"),
        ("level", np.array(levels), "hPa"),
        ("latitude", grid.latitude, "degrees_north"),
        ("longitude", grid.longitude, "degrees_east"),
    ):
        if len(values):
            create(name, [name], values.shape, values.shape, values.dtype.name, units=units)[:] = values
    arrays, middle, spread = {}, {}, {}
    extents = stores.find_extents(channel_set)
    for name, (first, last) in extents.items():
        upper = channel_set.dynamic[first].level_hpa is not None
        dims = ["time", *["level"] * upper, "latitude", "longitude"]
        shape = (*[last - first] * upper, lat, lon)
        units = channel_set.dynamic[first].units
        arrays[name] = create(name, dims, (frames, *shape), (1, *shape), "float32", units=units)
        levelled = sorted(channel_set.dynamic[first:last], key=lambda c: c.level_hpa or 0)  # as they lie in the file
        limits = [plausible_range(c.variable, c.level_hpa) for c in levelled]
        low, high = np.reshape(np.array(limits).T, (2, *shape[:-2], 1, 1))  # values that prepare takes for real ones
        middle[name], spread[name] = (low + high) / 2, (high - low) / 40
    for time_index, frame in enumerate(stores.make_frames(min(frames, FRAMES_MADE), channels, lat, lon)):
        for name, (first, last) in extents.items():
            arrays[name][time_index] = middle[name] + spread[name] * frame[first:last].reshape(arrays[name].shape[1:])
    zarr.consolidate_metadata(path, zarr_format=2)
    rests = {name: ".0" * (array.ndim - 1) for name, array in arrays.items()}
    copies = [
        (path / name / f"{n % FRAMES_MADE}{rest}", path / name / f"{n}{rest}")
        for name, rest in rests.items()
        for n in range(FRAMES_MADE, frames)
    ]
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(lambda pair: shutil.copy(*pair), copies))  # what fails is raised


def time_disk(folder: Path, files: list[Path], frames: int, size: int, threads: int) -> tuple[float, float]:
    """(MB/s of a plain read, MB/s of float32 frames where their source is read and their archive written at once)."""
    stored = sum(path.stat().st_size for path in files)
    some = files[:: max(1, frames // (FRAMES_PER_WORKER * threads))]
    out = folder / "written"
    out.mkdir()

    def copy(path: Path, *, write: bool) -> int:
        content = memoryview(path.read_bytes())
        if write:
            amount = int(
                path.stat().st_size / stored * frames * size / 2
            )  # of this file's share of a frame, in float16
            with (out / f"{path.parent.name}-{path.name}").open("wb") as file:
                while amount > 0:
                    amount -= file.write(content[:amount])
                file.flush()
                os.fsync(file.fileno())
        return len(content)

    rates = []
    for write in (False, True):
        stores.drop_from_page_cache(folder / "source.zarr")
        start = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            done = sum(pool.map(lambda path, write=write: copy(path, write=write), some))
        rates.append(done / (time.perf_counter() - start) / 1e6)
    shutil.rmtree(out)
    return rates[0], rates[1] * frames * size / stored


def time_decoding(files: list[Path]) -> float:
    """MB/s of float32 that one core makes of a chunk that is in memory: the best of some."""
    blosc.set_nthreads(1)
    content = max(files, key=lambda path: path.stat().st_size).read_bytes()
    values = np.frombuffer(CODEC.decode(content), np.float32).copy()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        CODEC.decode(content, values)
        seconds.append(time.perf_counter() - start)
    return values.nbytes / min(seconds) / 1e6


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


def time_prepare(source: Source, folder: Path, count: int) -> dict:
    """A row of the table: the source prepared by so many workers."""
    stores.drop_from_page_cache(folder / "source.zarr")
    with open_workers(count) as opened:
        workers = Watched(opened.executor, opened.at_work)
        prepare_archive(source, folder / "archive", workers=workers, climatology=False)
    shutil.rmtree(folder / "archive")
    plan = plan_archive(source, dtype="float16", domain=1, tensor=1, workers=count)
    gigabytes = plan.frame_bytes * len(source.times) / 1e9
    return {
        "workers": count,
        "frames": len(source.times),
        "megabytes_per_second": 1000 * gigabytes / workers.seconds,
        "cpu_seconds_per_gigabyte": workers.cpu_seconds / gigabytes,
        "cores_busy": workers.cpu_seconds / workers.seconds,
        "peak": workers.peak / 1e6,
        "stated": plan.worker_bytes / 1e6,
    }
