"""The layout of an archive that is to be made, and the memory that making it takes, known before anything is read."""

import dataclasses
import hashlib
import os
from typing import Any

import numpy as np

from weathermixer.archive.layout import COMPRESSORS, chunk_shape, stored_bytes
from weathermixer.archive.packing import DTYPES
from weathermixer.sources.sources import Source

SHARD_BYTES = 256 * 2**20  # of one file before compression: few enough files, small enough to hold some in memory
SHARD_TIMES = 64  # the index of a shard, 16 bytes for each chunk, is read before the first of its chunks
SHARD_TIMES_AT_MOST = 512
BLOCK_BYTES = 64 * 2**20  # of float32 of one variable, read at once
READS, REMOTE_READS = 1, 4  # blocks in flight in each worker beside the one that is packed
TASK_TIMES = 16  # shards are made one after another for so many times at least, as each start reads one more
PROCESS_BYTES = (
    384 * 2**20
)  # a process with the program's modules, thread pools, buffers of libraries, and what the allocator keeps


@dataclasses.dataclass(frozen=True)
class ArchivePlan:
    """Layout and limits. Sizes are of float32, but shard_bytes and total_bytes: as stored, before compression.

    lag counts times back to 6 h earlier; where the source's step does not divide 6 h, one step stands for them.
    """

    dtype: str
    compressor: str
    domain: int
    tensor: int
    times_per_shard: int
    times_per_block: int
    shards: int
    workers: int
    reads: int
    lag: int
    chunk: tuple[int, int, int, int]
    shape: tuple[int, int, int, int]
    frame_bytes: int
    block_bytes: int
    decoded_bytes: int

    @property
    def shard_bytes(self) -> int:
        return self.times_per_shard * int(np.prod(self.shape[1:])) * np.dtype(self.dtype).itemsize

    @property
    def total_bytes(self) -> int:
        """Of all files of fields, with checksums and indices, before compression."""
        return stored_bytes(self.shape, self.chunk, self.dtype, self.times_per_shard)

    @property
    def worker_bytes(self) -> int:
        """The memory of one worker, at most.

        It holds blocks as decoded and in order, the source's chunks they are decoded from, the frames that pairs reach
        back to, and four of a shard: being filled, written, cut into chunks and put together.
        """
        blocks = (self.reads + 1) * (2 * self.block_bytes + 2 * self.decoded_bytes)
        return PROCESS_BYTES + blocks + self.lag * self.frame_bytes + 4 * self.shard_bytes

    @property
    def shards_per_task(self) -> int:
        """So many that little is read twice, and that the last tasks end together."""
        enough = -(-TASK_TIMES * self.lag // self.times_per_shard)
        rounds = -(-self.shards // (enough * self.workers))
        return -(-self.shards // (rounds * self.workers))

    def times_of(self, shard: int) -> slice:
        """The times that lie in a shard."""
        return slice(shard * self.times_per_shard, min((shard + 1) * self.times_per_shard, self.shape[0]))

    def describe(self, source: Source) -> dict[str, Any]:
        """What has to be the same for a prepare to go on with what another began."""
        times = hashlib.sha256(source.times.astype("datetime64[s]").astype("<i8").tobytes()).hexdigest()
        places = np.concatenate([source.grid.latitude, source.grid.longitude]).astype("<f8")
        return {
            "dtype": self.dtype,
            "compressor": self.compressor,
            "domain": self.domain,
            "tensor": self.tensor,
            "times_per_shard": self.times_per_shard,
            "times": f"{len(source.times)} times, sha256 {times}",
            "grid": f"{source.grid.shape}, sha256 {hashlib.sha256(places.tobytes()).hexdigest()}",
            "channels": [channel.name for channel in source.channels],
            "static": list(source.static),
            "read_as": source.read_as,
        }


def plan_archive(
    source: Source,
    *,
    dtype: str,
    compressor: str = "none",
    domain: int,
    tensor: int,
    times_per_shard: int | None = None,
    workers: int | None = None,
) -> ArchivePlan:
    """Chooses shards, blocks and workers for a source; ValueError where the sizes do not fit the mesh."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} must be one of {DTYPES}")
    if compressor not in COMPRESSORS:
        raise ValueError(f"compressor={compressor!r} must be one of {tuple(COMPRESSORS)}")
    if domain < 1 or tensor < 1:
        raise ValueError(f"domain={domain} and tensor={tensor} must be at least 1")
    lat, lon = source.grid.shape
    if lat % domain:
        remedy = "; --crop-south-pole drops the last row" if (lat - 1) % domain == 0 else ""
        raise ValueError(f"latitude={lat} is not divisible by domain={domain}{remedy}")
    channels = len(source.channels)
    itemsize = np.dtype(dtype).itemsize
    chunk = chunk_shape(channels, len(source.static), lat, lon, itemsize=itemsize, domain=domain, tensor=tensor)
    times_per_shard = times_per_shard or _times_per_shard(channels * lat * lon * itemsize, source)
    widest = max(  # of a sum, all that it is made of is read
        sum(c.variable == variable for c in source.channels) * series[0].window
        for variable, series in source.series.items()
    )
    variable_bytes = widest * 4 * int(len(source.orientation.rows) * len(source.orientation.columns))
    times_per_block = max(1, min(times_per_shard, BLOCK_BYTES // variable_bytes))
    if times_per_block > source.time_chunk:
        times_per_block -= times_per_block % source.time_chunk  # a source's chunk is decoded once
    return ArchivePlan(
        dtype=dtype,
        compressor=compressor,
        domain=domain,
        tensor=tensor,
        times_per_shard=times_per_shard,
        times_per_block=times_per_block,
        shards=-(-len(source.times) // times_per_shard),
        workers=workers or min(_cores(), 1 + len(source.times) * channels * lat * lon * 4 // 2**30),
        reads=REMOTE_READS if "://" in source.name else READS,
        lag=6 // source.step_hours if 6 % source.step_hours == 0 else 1,
        chunk=chunk,
        shape=(len(source.times), channels, lat, lon),
        frame_bytes=channels * lat * lon * 4,
        block_bytes=times_per_block * variable_bytes,
        decoded_bytes=max(source.decoded_bytes(variable, times_per_block) for variable in source.variables),
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _times_per_shard(frame_bytes: int, source: Source) -> int:
    fits = max(1, SHARD_BYTES // frame_bytes)
    times = min(fits, SHARD_TIMES)
    chunk = source.time_chunk
    if chunk <= times:
        times -= times % chunk
    elif chunk <= min(fits, SHARD_TIMES_AT_MOST):
        times = chunk  # one shard for each of the source's chunks: read once, like everything
    return min(times, len(source.times))
