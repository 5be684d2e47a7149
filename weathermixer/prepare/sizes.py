"""The layout of an archive that is to be made, and the memory that making it takes, known before anything is read."""

import dataclasses
import os
from typing import Any

import numpy as np

from weathermixer.archive.layout import Layout
from weathermixer.sources.sources import Source

SHARD_BYTES = 256 * 2**20  # of one file before compression: few enough files, small enough to hold some in memory
SHARD_TIMES = 64  # the index of a shard, 16 bytes for each chunk, is read before the first of its chunks
SHARD_TIMES_AT_MOST = 512
BLOCK_BYTES = 64 * 2**20  # of float32 of one variable, read at once
READS, REMOTE_READS = 1, 4  # blocks in flight in each worker beside the one that is packed
TASK_TIMES = 16  # shards are made one after another for so many times at least, as each start reads one more
# a process with the program's modules, thread pools, buffers of libraries, and what the allocator keeps
PROCESS_BYTES = 384 * 2**20


@dataclasses.dataclass(frozen=True)
class ArchivePlan:
    """Layout and limits; sizes are of float32."""

    layout: Layout
    times_per_block: int
    workers: int
    reads: int
    lag: int  # times back to 6 h earlier; where the source's step does not divide 6 h, one step stands for them
    frame_bytes: int  # of one time
    block_bytes: int
    decoded_bytes: int

    @property
    def worker_bytes(self) -> int:
        """The memory of one worker, at most.

        It holds blocks as decoded and in order, the source's chunks they are decoded from, the frames that pairs reach
        back to, and four of a shard: being filled, written, cut into chunks and put together.
        """
        blocks = (self.reads + 1) * (2 * self.block_bytes + 2 * self.decoded_bytes)
        return PROCESS_BYTES + blocks + self.lag * self.frame_bytes + 4 * self.layout.shard_bytes

    @property
    def shards_per_task(self) -> int:
        """So many that little is read twice, and that the last tasks end together."""
        enough = -(-TASK_TIMES * self.lag // self.layout.times_per_shard)
        rounds = -(-self.layout.shards // (enough * self.workers))
        return -(-self.layout.shards // (rounds * self.workers))


def plan_archive(
    source: Source, *, times_per_shard: int | None = None, workers: int | None = None, **options: Any
) -> ArchivePlan:
    """Chooses shards, blocks and workers for a source, `options` are those of `Layout`.

    Raises ValueError where the sizes do not fit the mesh.
    """
    shape = (len(source.times), len(source.channels), *source.grid.shape)
    layout = Layout(shape=shape, static=len(source.static), times_per_shard=times_per_shard or 1, **options)
    if times_per_shard is None:
        layout = dataclasses.replace(layout, times_per_shard=_times_per_shard(layout.shard_bytes, source))
    widest = max(  # of a sum, all that it is made of is read
        sum(c.variable == variable for c in source.channels) * series[0].window
        for variable, series in source.series.items()
    )
    variable_bytes = widest * 4 * int(len(source.orientation.rows) * len(source.orientation.columns))
    times_per_block = max(1, min(layout.times_per_shard, BLOCK_BYTES // variable_bytes))
    if times_per_block > source.time_chunk:
        times_per_block -= times_per_block % source.time_chunk  # a source's chunk is decoded once
    frame_bytes = 4 * int(np.prod(shape[1:]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ArchivePlan(
        layout=layout,
        times_per_block=times_per_block,
        workers=workers or min(cores, 1 + shape[0] * frame_bytes // 2**30),
        reads=REMOTE_READS if "://" in source.name else READS,
        lag=6 // source.step_hours if 6 % source.step_hours == 0 else 1,
        frame_bytes=frame_bytes,
        block_bytes=times_per_block * variable_bytes,
        decoded_bytes=max(source.decoded_bytes(variable, times_per_block) for variable in source.variables),
    )


def _times_per_shard(frame_bytes: int, source: Source) -> int:
    fits, chunk = max(1, SHARD_BYTES // frame_bytes), source.time_chunk
    times = min(fits, SHARD_TIMES)
    if chunk <= times:
        times -= times % chunk
    elif chunk <= min(fits, SHARD_TIMES_AT_MOST):
        times = chunk  # one shard for each of the source's chunks: read once, like everything
    return min(times, len(source.times))
