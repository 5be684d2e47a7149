"""The layout of an archive that is to be made, and the memory that making it takes, known before anything is read."""

import dataclasses
import hashlib
import os
from typing import Any

import numpy as np

from weathermixer.archive.layout import COMPRESSORS, chunk_shape, stored_bytes
from weathermixer.archive.packing import DTYPES
from weathermixer.prepare.sources import Source

SHARD_BYTES = 256 * 2**20  # of one file before compression: few enough files, small enough to hold some in memory
SHARD_TIMES = 64  # the index of a shard, 16 bytes for each chunk, is read before the first of its chunks
SHARD_TIMES_AT_MOST = 512
BLOCK_BYTES = 64 * 2**20  # of float32 of one variable, read at once by one thread
FEW_BYTES = 4 * 2**20  # of frames that are checked, summed and packed at once
THREADS = 8
BASE_BYTES = 128 * 2**20  # thread pools, buffers of libraries, and what the allocator keeps


@dataclasses.dataclass(frozen=True)
class ArchivePlan:
    """Layout and limits. Sizes are of float32, but shard_bytes and total_bytes: as stored, before compression."""

    dtype: str
    compressor: str
    domain: int
    tensor: int
    times_per_shard: int
    times_per_block: int
    shards: int
    threads: int
    chunk: tuple[int, int, int, int]
    shape: tuple[int, int, int, int]
    frame_bytes: int
    block_bytes: int
    decoded_bytes: int
    tail_bytes: int

    @property
    def shard_bytes(self) -> int:
        return self.times_per_shard * int(np.prod(self.shape[1:])) * np.dtype(self.dtype).itemsize

    @property
    def total_bytes(self) -> int:
        """Of all files of fields, with checksums and indices, before compression."""
        return stored_bytes(self.shape, self.chunk, self.dtype, self.times_per_shard)

    @property
    def memory_bytes(self) -> int:
        """What a prepare adds to the memory of a bare process, at most.

        Each thread holds its block as decoded and in order, the source's chunks it is decoded from, and ten copies of a
        few frames. There are five of a shard: being filled, written, cut into chunks, compressed and put together.
        """
        few = max(FEW_BYTES, self.block_bytes // self.times_per_block)
        threads = self.threads * (2 * self.block_bytes + 2 * self.decoded_bytes + 10 * few)
        return BASE_BYTES + threads + 5 * self.shard_bytes + 2 * self.tail_bytes

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
        }


def plan_archive(
    source: Source,
    *,
    dtype: str,
    compressor: str = "none",
    domain: int,
    tensor: int,
    times_per_shard: int | None = None,
    threads: int | None = None,
) -> ArchivePlan:
    """Chooses shards and blocks for a source; ValueError where the sizes do not fit the mesh."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} must be one of {DTYPES}")
    if compressor not in COMPRESSORS:
        raise ValueError(f"compressor={compressor!r} must be one of {tuple(COMPRESSORS)}")
    if domain < 1 or tensor < 1:
        raise ValueError(f"domain={domain} and tensor={tensor} must be at least 1")
    lat, lon = source.grid.shape
    if lat % domain:
        remedy = "; --crop_south_pole drops the last row" if (lat - 1) % domain == 0 else ""
        raise ValueError(f"latitude={lat} is not divisible by domain={domain}{remedy}")
    channels = len(source.channels)
    itemsize = np.dtype(dtype).itemsize
    threads = threads or min(THREADS, os.cpu_count() or 1, len(source.variables))
    chunk = chunk_shape(channels, len(source.static), lat, lon, itemsize=itemsize, domain=domain, tensor=tensor)
    times_per_shard = times_per_shard or _times_per_shard(channels * lat * lon * itemsize, source)
    widest = max(sum(c.variable == variable for c in source.channels) for variable in source.variables)
    variable_bytes = widest * 4 * int(len(source.orientation.rows) * len(source.orientation.columns))
    times_per_block = max(1, min(times_per_shard, BLOCK_BYTES // variable_bytes))
    if times_per_block > source.time_chunk:
        times_per_block -= times_per_block % source.time_chunk  # a source's chunk is decoded once
    lag = max(1, 6 // source.step_hours)
    return ArchivePlan(
        dtype=dtype,
        compressor=compressor,
        domain=domain,
        tensor=tensor,
        times_per_shard=times_per_shard,
        times_per_block=times_per_block,
        shards=-(-len(source.times) // times_per_shard),
        threads=threads,
        chunk=chunk,
        shape=(len(source.times), channels, lat, lon),
        frame_bytes=channels * lat * lon * 4,
        block_bytes=times_per_block * variable_bytes,
        decoded_bytes=max(source.decoded_bytes(variable, times_per_block) for variable in source.variables),
        tail_bytes=lag * channels * lat * lon * 4,
    )


def _times_per_shard(frame_bytes: int, source: Source) -> int:
    fits = max(1, SHARD_BYTES // frame_bytes)
    times = min(fits, SHARD_TIMES)
    chunk = source.time_chunk
    if chunk <= times:
        times -= times % chunk
    elif chunk <= min(fits, SHARD_TIMES_AT_MOST):
        times = chunk  # one shard for each of the source's chunks: read once, like everything
    return min(times, len(source.times))
