"""What is checked of frames on their way into an archive, and the checksums by which it can be verified afterwards."""

import hashlib
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt32

from weathermixer.data import storage

NUMBERS = ("time", "latitude", "longitude", "scale", "offset", "static", "mean", "std", "tendency_std", "minimum")
NUMBERS += ("maximum", "missing", "checksum")
TEXTS = ("channel", "static_channel")
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


def digest_archive(target: str) -> tuple[str, dict[str, str]]:
    """(one SHA-256 over all that an archive holds, the manifest: a SHA-256 for each of its arrays but `fields`).

    `checksum`, the CRC-32 of every field, stands for those. Digests are of values: they do not depend on compression,
    on the layout of chunks, or on when an archive was made.
    """
    manifest = {}
    for name in NUMBERS:
        values = storage.read_array(storage.join(target, name)).result()
        header = f"{values.dtype.name} {values.shape}\n".encode()
        content = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
        manifest[name] = hashlib.sha256(header + content).hexdigest()
    for name in TEXTS:
        lines = "\n".join(storage.read_text_array(storage.join(target, name)))
        manifest[name] = hashlib.sha256(lines.encode()).hexdigest()
    whole = "\n".join(f"{name} {digest}" for name, digest in sorted(manifest.items()))
    return hashlib.sha256(whole.encode()).hexdigest(), manifest
