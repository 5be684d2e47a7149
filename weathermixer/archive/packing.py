"""How physical values are kept in 16 bits: float16 of the standardized value, or packed int16; float32 as it is.

    physical = stored * scale[channel] + offset[channel]

float16 rounds by 2.1e-4 standard deviations whatever the channel (at 50 hPa in ERA5: 0.98 m2/s2 of geopotential and
2.2e-11 kg/kg of humidity), int16 by 3e-5 to 9e-5; float32 by nothing (docs/performance.md has more). float16 is the
default: its error is 1 % of a step's change at worst, it holds missing values, and no extreme lies outside its range.
int16, two to eight times finer, stops at values that lie beyond a sample's range by more than half of it.
"""

import numpy as np
from jaxtyping import Float

DTYPES = ("float16", "int16", "float32")
# int16 covers the sample's range and this share of it on each side: a record's extremes lie beyond any sample's
INT16_MARGIN = 0.5
INT16_LARGEST = 32767


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
) -> np.ndarray:
    """Physical float32 frames -> stored values.

    Raises UnpackableError where a value cannot be stored: beyond the type's range, or missing in int16.
    """
    if dtype == "float32":
        return frames
    scaled = frames - offset.astype(np.float32)[:, None, None]
    scaled /= scale.astype(np.float32)[:, None, None]
    largest = float(INT16_LARGEST) if dtype == "int16" else float(np.finfo(np.float16).max)
    if not (-largest <= scaled.min() and scaled.max() <= largest):  # so it is too where a value is missing
        outside = np.abs(scaled) > largest if dtype == "float16" else ~(np.abs(scaled) <= largest)
        outside &= ~np.isinf(frames) if dtype == "float16" else True
        if outside.any():
            index = np.argwhere(outside)[0]
            raise UnpackableError(int(index[0]), int(index[1]), float(frames[tuple(index)]))
        return scaled.astype(np.float16)
    return np.rint(scaled, out=scaled).astype(np.int16) if dtype == "int16" else _round_to_float16(scaled)


def _round_to_float16(values: Float[np.ndarray, "*shape"]) -> np.ndarray:
    """values.astype(np.float16), bit for bit, in half the time: finite float32 that float16 can hold.

    numpy converts one value after another (0.6 s/GB, here 0.27). Of float32's bits, sign, 8 of exponent and 23 of
    mantissa, the last 13 are rounded off, half to even, and the exponent's offset falls from 127 to 15.
    """
    bits = values.view(np.uint32)
    kept = bits >> np.uint32(13)
    kept &= np.uint32(1)
    kept += bits
    kept += np.uint32((0xFFF - ((127 - 15) << 23)) % 2**32)
    kept >>= np.uint32(13)
    packed = kept.astype(np.uint16)
    packed &= np.uint16(0x7FFF)
    np.right_shift(bits, np.uint32(16), out=kept)
    sign = kept.astype(np.uint16)
    sign &= np.uint16(0x8000)
    packed |= sign
    packed = packed.view(np.float16)
    # below float16's least normal number there is no exponent to shift: 1 value in 20,000 of standardized weather
    np.left_shift(bits, np.uint32(1), out=kept)
    small = kept < np.float32(np.finfo(np.float16).tiny).view(np.uint32) << np.uint32(1)
    if small.any():
        packed[small] = values[small].astype(np.float16)
    return packed


def rounding_error(sample: Float[np.ndarray, "time channel lat lon"], dtype: str) -> Float[np.ndarray, " channel"]:
    """Root mean square per channel of what storing a sample changes, in physical units."""
    if dtype == "float32":
        return np.zeros(sample.shape[1])
    scale, offset = choose_packing(sample, dtype)
    finite = np.where(np.isfinite(sample), sample, offset.astype(np.float32)[:, None, None])
    stored = pack(finite, scale, offset, dtype).astype(np.float64)
    error = stored * scale[:, None, None] + offset[:, None, None] - finite
    return np.sqrt(np.square(error).mean(axis=(0, 2, 3)))


class UnpackableError(ValueError):
    """A value that the chosen type cannot hold, at [time, channel] of the block."""

    def __init__(self, time: int, channel: int, value: float):
        super().__init__(f"value {value} cannot be stored")
        self.time, self.channel, self.value = time, channel, value
