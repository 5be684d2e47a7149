"""What is checked of frames on their way into an archive, and the checksums by which it can be verified afterwards."""

import hashlib
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt32

from weathermixer.data import storage

# covered by the digest: everything that readers use, besides the fields, whose checksums stand for them
SMALL_ARRAYS = ("time", "latitude", "longitude", "scale", "offset", "static", "mean", "std", "tendency_std", "minimum")
SMALL_ARRAYS += ("maximum", "missing")
FAULTS_SHOWN = 10


def check_frames(
    frames: Float[np.ndarray, "time channel lat lon"], times: np.ndarray, names: Sequence[str]
) -> list[str]:
    """Names each channel and time that holds missing or infinite values, or nothing but equal ones, with counts."""
    low, high = frames.min(axis=(2, 3)), frames.max(axis=(2, 3))
    faults = []
    for time, channel in np.argwhere(~(np.isfinite(low) & np.isfinite(high)) | (low == high)):
        where = f"{names[channel]} at {times[time].astype('datetime64[m]')}"
        values = frames[time, channel]
        missing, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        if missing or infinite:
            counts = [f"{missing} missing (NaN)"] * bool(missing) + [f"{infinite} infinite"] * bool(infinite)
            faults.append(f"{where}: {' and '.join(counts)} of {values.size} values")
        else:
            faults.append(f"{where}: constant, every value is {values.flat[0]}")
    return faults


def describe_faults(faults: Sequence[str], path: str) -> str:
    """The message of a prepare that stops at faulty fields."""
    more = f"\n  and {len(faults) - FAULTS_SHOWN} more in these times" if len(faults) > FAULTS_SHOWN else ""
    shown = "\n  ".join(faults[:FAULTS_SHOWN])
    return (
        f"the source holds faulty fields, {path} is not published:\n  {shown}{more}\n"
        "leave these times out (--exclude TIME, or another --period) or the variable, or keep them (--keep-faults)"
    )


def checksums(stored: np.ndarray) -> UInt32[np.ndarray, "time channel"]:
    """CRC-32 of each channel's field at each time, over its stored bytes, little endian."""
    stored = np.ascontiguousarray(stored, stored.dtype.newbyteorder("<"))
    time, channel, *_ = stored.shape
    sums = [zlib.crc32(stored[t, c]) for t in range(time) for c in range(channel)]
    return np.array(sums, np.uint32).reshape(time, channel)


def digest_archive(target: str, sums: UInt32[np.ndarray, "time channel"]) -> str:
    """One SHA-256 over all that an archive holds: values of its small arrays, names, and the fields' checksums.

    It depends on values, not on how they are compressed or when they were written.
    """
    digest = hashlib.sha256(sums.astype("<u4").tobytes())
    for name in SMALL_ARRAYS:
        values = storage.read_array(storage.join(target, name)).result()
        digest.update(f"{name} {values.dtype.name} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    for name in ("channel", "static_channel"):
        digest.update("\n".join(storage.read_text_array(storage.join(target, name))).encode())
    return digest.hexdigest()
