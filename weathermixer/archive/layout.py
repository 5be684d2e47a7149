"""How an archive's frames are cut into shards and chunks, and encoded."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from weathermixer.archive.packing import DTYPES
from weathermixer.archive.storage import BYTES

# Decoding is quickest where a chunk and its decoded copy stay in a core's cache; chunks of a few pages cost by number
CHUNK_BYTES = 2**20
SMALL_CHUNK_BYTES = 2**14
# name -> blosc's codec and level, and about how many of the bytes it leaves (weather in float16)
COMPRESSORS = {"none": (None, 0, 1.0), "lz4": ("lz4", 5, 0.78), "zstd": ("zstd", 3, 0.67)}
CHECKSUM_BYTES = 4  # after each chunk and each shard's index
INDEX_BYTES = 16  # of a shard, for each of its chunks: offset and length


def chunk_shape(
    channels: int, static: int, lat: int, lon: int, *, itemsize: int, domain: int, tensor: int
) -> tuple[int, int, int, int]:
    """The inner chunk: a band of lat / domain rows, and as many of a tensor part's channels as fit CHUNK_BYTES.

    A tensor part is 1 / tensor of the model's channel dimension: stored channels and static fields, padded to a
    multiple. A chunk's channels divide it, and divide the stored channels too where that leaves no tiny chunks.
    """
    part = -(-(channels + static) // tensor)
    row = lat // domain * lon * itemsize
    fits = [size for size in range(1, part + 1) if part % size == 0 and size * row <= max(CHUNK_BYTES, row)]
    even = max(size for size in fits if channels % size == 0)
    return 1, even if even * row >= SMALL_CHUNK_BYTES else min(fits[-1], channels), lat // domain, lon


@dataclasses.dataclass(frozen=True)
class Layout:
    """How `fields` [time, channel, lat, lon] are cut into shards and chunks and stored, for meshes up to a size."""

    shape: tuple[int, int, int, int]
    chunk: tuple[int, int, int, int]
    dtype: str
    compressor: str
    domain: int
    tensor: int
    times_per_shard: int

    @property
    def options(self) -> dict[str, Any]:
        """What `make_layout` was given: all but shape and chunk."""
        _, _, *fields = dataclasses.fields(self)
        return {field.name: getattr(self, field.name) for field in fields}

    @property
    def shards(self) -> int:
        return -(-self.shape[0] // self.times_per_shard)

    def times_of(self, shard: int) -> slice:
        """The times that lie in a shard."""
        return slice(shard * self.times_per_shard, min((shard + 1) * self.times_per_shard, self.shape[0]))

    @property
    def shard_bytes(self) -> int:
        """Of a full shard as stored, before compression."""
        return self.times_per_shard * int(np.prod(self.shape[1:])) * np.dtype(self.dtype).itemsize

    @property
    def total_bytes(self) -> int:
        """Of all shards before compression: chunks, each as full as the first, their checksums, and indices."""
        times, channels, lat, _ = self.shape
        chunks = -(-channels // self.chunk[1]) * (lat // self.chunk[2])
        one = int(np.prod(self.chunk)) * np.dtype(self.dtype).itemsize + CHECKSUM_BYTES
        return times * chunks * one + self.shards * (self.times_per_shard * chunks * INDEX_BYTES + CHECKSUM_BYTES)

    @property
    def metadata(self) -> dict[str, Any]:
        """The Zarr v3 metadata: shards of whole frames."""
        shard = [self.times_per_shard, -(-self.shape[1] // self.chunk[1]) * self.chunk[1], *self.shape[2:]]
        found = sharded_metadata(self.shape, shard, self.chunk, self.dtype, compressor=self.compressor)
        return found | {
            "fill_value": 0,
            "dimension_names": ["time", "channel", "latitude", "longitude"],
            "attributes": {"comment": "physical value in SI units = stored * scale[channel] + offset[channel]"},
        }


def make_layout(
    shape: tuple[int, int, int, int],
    *,
    static: int,
    times_per_shard: int,
    dtype: str = "float16",
    compressor: str = "none",
    domain: int = 1,
    tensor: int = 1,
) -> Layout:
    """The layout of an archive of this shape that has so many static fields beside it.

    compressor "none" is read at the rate of a plain copy; "zstd" takes 2/3 of the bytes and "lz4" 4/5, which slow and
    remote stores are read faster from. Raises ValueError where the sizes do not fit.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} must be one of {DTYPES}")
    if compressor not in COMPRESSORS:
        raise ValueError(f"compressor={compressor!r} must be one of {tuple(COMPRESSORS)}")
    if domain < 1 or tensor < 1 or times_per_shard < 1:
        raise ValueError(f"domain={domain}, tensor={tensor}, times_per_shard={times_per_shard} must be at least 1")
    _, channels, lat, lon = shape
    if lat % domain:
        remedy = "; --crop-south-pole drops the last row" if (lat - 1) % domain == 0 else ""
        raise ValueError(f"latitude={lat} is not divisible by domain={domain}{remedy}")
    itemsize = np.dtype(dtype).itemsize
    chunk = chunk_shape(channels, static, lat, lon, itemsize=itemsize, domain=domain, tensor=tensor)
    return Layout(shape, chunk, dtype, compressor, domain, tensor, times_per_shard)


def sharded_metadata(
    shape: Sequence[int], shard: Sequence[int], chunk: Sequence[int], dtype: str, *, compressor: str
) -> dict[str, Any]:
    """Zarr v3 metadata of an array in shards, chunks encoded by themselves, each with a checksum, an index at the end.

    Without fill value, names of dimensions and attributes.
    """
    cname, level, _ = COMPRESSORS[compressor]
    # shuffling bytes, not bits: smaller (1.5 against 1.4 times, 1.4 against 1.2 on analyses of wind) and decoded faster
    blosc = {"cname": cname, "clevel": level, "shuffle": "shuffle", "typesize": np.dtype(dtype).itemsize}
    compress = [{"name": "blosc", "configuration": blosc | {"blocksize": 0}}] if cname else []
    crc32c = {"name": "crc32c"}
    sharding = {
        "chunk_shape": list(chunk),
        # the checksum covers what is stored: neither blosc nor zstd notices every flipped bit
        "codecs": [BYTES, *compress, crc32c],
        "index_codecs": [BYTES, crc32c],
        "index_location": "end",
    }
    return {
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shard)}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
