"""Checksums of what an archive holds, by which it can be verified later: of every field, and of all together."""

import hashlib
import zlib

import numpy as np
from jaxtyping import UInt32

from weathermixer.archive import storage
from weathermixer.archive.archive import NUMERIC

TEXTS = ("channel", "static_channel")


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
    for name in (*NUMERIC, "checksum"):
        values = storage.read_array(storage.join(target, name)).result()
        header = f"{values.dtype.name} {values.shape}\n".encode()
        content = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
        manifest[name] = hashlib.sha256(header + content).hexdigest()
    for name in TEXTS:
        lines = "\n".join(storage.read_text_array(storage.join(target, name)))
        manifest[name] = hashlib.sha256(lines.encode()).hexdigest()
    whole = "\n".join(f"{name} {digest}" for name, digest in sorted(manifest.items()))
    return hashlib.sha256(whole.encode()).hexdigest(), manifest
