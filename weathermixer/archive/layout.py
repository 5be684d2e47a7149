"""How an archive's frames are cut into shards and chunks, encoded, and packed.

Physical values are kept in 16 bits, as float16 of the standardized value or packed int16; or as they are, in float32.

    physical = stored * scale[channel] + offset[channel]

float16 is the default: its error is 1 % of a step's change at worst (docs/performance.md), it holds missing values, and
no extreme lies outside its range. int16, two to eight times finer, stops at values far beyond a sample's range.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from weathermixer.archive import storage

DTYPES = ("float16", "int16", "float32")
# int16 covers the sample's range and this share of it on each side: a record's extremes lie beyond any sample's
INT16_MARGIN = 0.5
INT16_LARGEST = 32767
# Decoding is quickest where a chunk and its decoded copy stay in a core's cache; chunks of a few pages cost by number
CHUNK_BYTES = 2**20
SMALL_CHUNK_BYTES = 2**14
# name -> blosc's codec and level, and about how many of the bytes it leaves (weather in float16)
COMPRESSORS = {"none": (None, 0, 1.0), "lz4": ("lz4", 5, 0.78), "zstd": ("zstd", 3, 0.67)}
CHECKSUM_BYTES = 4  # after each chunk and each shard's index
INDEX_BYTES = 16  # of a shard, for each of its chunks: offset and length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How `fields` [time, channel, lat, lon] are cut and stored. Raises ValueError where the sizes do not fit."""

    shape: tuple[int, int, int, int]
    static: int  # fields beside it
    times_per_shard: int
    dtype: str = "float16"
    # takes least work to read; "zstd" takes 2/3 of the bytes and "lz4" 4/5: slow and remote stores are read faster
    compressor: str = "none"
    domain: int = 1  # and tensor: the largest mesh that reads just its own bytes
    tensor: int = 1

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} must be one of {DTYPES}")
        if self.compressor not in COMPRESSORS:
            raise ValueError(f"compressor={self.compressor!r} must be one of {tuple(COMPRESSORS)}")
        if min(self.domain, self.tensor, self.times_per_shard) < 1:
            sizes = f"domain={self.domain}, tensor={self.tensor}, times_per_shard={self.times_per_shard}"
            raise ValueError(f"{sizes} must be at least 1")
        lat = self.shape[2]
        if lat % self.domain:
            remedy = "; --crop-south-pole drops the last row" if (lat - 1) % self.domain == 0 else ""
            raise ValueError(f"latitude={lat} is not divisible by domain={self.domain}{remedy}")

    @property
    def itemsize(self) -> int:
        return np.dtype(self.dtype).itemsize

    @property
    def chunk(self) -> tuple[int, int, int, int]:
        """The inner chunk: a band of lat / domain rows, and as many of a tensor part's channels as fit CHUNK_BYTES.

        A tensor part is 1 / tensor of the model's channel dimension: stored channels and static fields, padded to a
        multiple. A chunk's channels divide it, and divide the stored channels too where that leaves no tiny chunks.
        """
        _, channels, lat, lon = self.shape
        part, row = -(-(channels + self.static) // self.tensor), lat // self.domain * lon * self.itemsize
        fits = [size for size in range(1, part + 1) if part % size == 0 and (size == 1 or size * row <= CHUNK_BYTES)]
        even = max(size for size in fits if channels % size == 0)
        return 1, even if even * row >= SMALL_CHUNK_BYTES else min(fits[-1], channels), lat // self.domain, lon

    @property
    def shards(self) -> int:
        return -(-self.shape[0] // self.times_per_shard)

    def times_of(self, shard: int) -> slice:
        """The times that lie in a shard."""
        return slice(shard * self.times_per_shard, min((shard + 1) * self.times_per_shard, self.shape[0]))

    @property
    def shard_bytes(self) -> int:
        """Of a full shard as stored, before compression."""
        return self.times_per_shard * int(np.prod(self.shape[1:])) * self.itemsize

    @property
    def total_bytes(self) -> int:
        """Of all shards before compression: chunks, each as full as the first, their checksums, and indices."""
        times, channels, *_ = self.shape
        chunks = -(-channels // self.chunk[1]) * self.domain
        one = int(np.prod(self.chunk)) * self.itemsize + CHECKSUM_BYTES
        return times * chunks * one + self.shards * (self.times_per_shard * chunks * INDEX_BYTES + CHECKSUM_BYTES)

    @property
    def metadata(self) -> dict[str, Any]:
        """The Zarr v3 metadata: shards of whole frames."""
        shard = [self.times_per_shard, -(-self.shape[1] // self.chunk[1]) * self.chunk[1], *self.shape[2:]]
        about = {
            "fill_value": 0,
            "dimension_names": ["time", "channel", "latitude", "longitude"],
            "attributes": {"comment": "physical value in SI units = stored * scale[channel] + offset[channel]"},
        }
        codecs = sharding_codecs(self.chunk, self.dtype, compressor=self.compressor)
        return storage.array_metadata(self.shape, shard, self.dtype, codecs, **about)


def sharding_codecs(chunk: Sequence[int], dtype: str, *, compressor: str) -> list[storage.Spec]:
    """Of an array in shards: chunks are encoded by themselves, each with a checksum, and an index is at the end."""
    cname, level, _ = COMPRESSORS[compressor]
    # shuffling bytes, not bits: smaller (1.5 against 1.4 times, 1.4 against 1.2 on analyses of wind) and decoded faster
    blosc = {"cname": cname, "clevel": level, "shuffle": "shuffle", "typesize": np.dtype(dtype).itemsize}
    compress = [{"name": "blosc", "configuration": blosc | {"blocksize": 0}}] if cname else []
    # the checksum covers what is stored: neither blosc nor zstd notices every flipped bit
    codecs, index_codecs = [storage.BYTES, *compress, {"name": "crc32c"}], [storage.BYTES, {"name": "crc32c"}]
    sharding = {"chunk_shape": list(chunk), "codecs": codecs, "index_codecs": index_codecs, "index_location": "end"}
    return [{"name": "sharding_indexed", "configuration": sharding}]


def choose_packing(
    sample: Float[np.ndarray, "time channel lat lon"], dtype: str
) -> tuple[Float[np.ndarray, " channel"], Float[np.ndarray, " channel"]]:
    """(scale, offset) per channel for frames like those of a sample; both are exact in float32.

    float16: offset is the mean and scale the standard deviation. int16: the range and a margin over 65534 steps.
    float32: scale 1 and offset 0, so that values are kept bit by bit.
    """
    channels = sample.shape[1]
    if dtype == "float32":
        return np.ones(channels), np.zeros(channels)
    values = sample.transpose(1, 0, 2, 3).reshape(channels, -1)
    scale, offset = np.ones(channels), np.zeros(channels)
    for channel in range(channels):
        finite = values[channel][np.isfinite(values[channel])].astype(np.float64)
        if not len(finite):
            continue  # no value at all: any packing will do
        if dtype == "float16":
            scale[channel], offset[channel] = finite.std(), finite.mean()
        else:
            low, high = finite.min(), finite.max()
            scale[channel] = (high - low) * (1 + 2 * INT16_MARGIN) / (2 * INT16_LARGEST)
            offset[channel] = (low + high) / 2
    scale, offset = scale.astype(np.float32).astype(np.float64), offset.astype(np.float32).astype(np.float64)
    return np.where(scale > 0, scale, 1.0), offset


def pack(
    frames: Float[np.ndarray, "time channel lat lon"],
    scale: Float[np.ndarray, " channel"],
    offset: Float[np.ndarray, " channel"],
    dtype: str,
) -> tuple[np.ndarray, tuple[int, float] | None]:
    """(physical float32 frames as stored, None or channel and value of one that cannot be stored).

    That is one beyond the type's range, and in int16 one that is missing.
    """
    if dtype == "float32":
        return frames, None
    scaled = frames - offset.astype(np.float32)[:, None, None]
    scaled /= scale.astype(np.float32)[:, None, None]
    largest = float(INT16_LARGEST) if dtype == "int16" else float(np.finfo(np.float16).max)
    if not (-largest <= scaled.min() and scaled.max() <= largest):  # so it is too where a value is missing
        outside = ~(np.abs(scaled) <= largest) & (np.isfinite(frames) | (dtype == "int16"))
        if outside.any():
            index = tuple(np.argwhere(outside)[0])
            return scaled, (int(index[1]), float(frames[index]))
    return np.rint(scaled, out=scaled).astype(np.int16) if dtype == "int16" else scaled.astype(np.float16), None


def rounding_error(sample: Float[np.ndarray, "time channel lat lon"], dtype: str) -> Float[np.ndarray, " channel"]:
    """Root mean square per channel of what storing a sample changes, in physical units."""
    if dtype == "float32":
        return np.zeros(sample.shape[1])
    scale, offset = choose_packing(sample, dtype)
    finite = np.where(np.isfinite(sample), sample, offset.astype(np.float32)[:, None, None])
    stored = pack(finite, scale, offset, dtype)[0].astype(np.float64)
    error = stored * scale[:, None, None] + offset[:, None, None] - finite
    return np.sqrt(np.square(error).mean(axis=(0, 2, 3)))
