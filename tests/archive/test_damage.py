"""Whatever is wrong with a shard, reading it ends with the time and place that it holds, never with other values."""

import pathlib
import threading

import numpy as np
import pytest

from weathermixer.archive.archive import open_archive
from weathermixer.archive.reader import Reader, Unreadable
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel.mesh import make_mesh


def test_what_is_wrong_is_named(make_archive):
    archive = make_archive(domain=2, shape=(8, 16))  # 4 times of 2 chunks in a file, 512 bytes and a checksum each
    channels = ChannelSet(archive.channels)
    shard = pathlib.Path(archive.path, "fields/c/1/0/0/0")
    sound = shard.read_bytes()
    assert len(sound) == 8 * (512 + 4) + 8 * 16 + 4

    def damaged(position):
        content = bytearray(sound)
        content[position] ^= 1
        return bytes(content)

    for content, message in [
        (damaged(100), "[Dd]igest mismatch"),
        (damaged(513), "[Dd]igest mismatch"),
        (damaged(len(sound) - 60), "[Dd]igest mismatch"),
        (damaged(len(sound) - 1), "[Dd]igest mismatch"),
        (sound[:50], "byte range"),
        (b"", "byte range"),
        (None, "is missing"),
    ]:
        shard.write_bytes(content) if content is not None else shard.unlink()
        with pytest.raises(Unreadable, match=f"cannot read time 2000-01-0[12].* latitudes .*{message}"):
            for time in (4, 5, 6, 7):
                reader = Reader(open_archive(archive.path), channels, make_mesh(1, 2, 1), 1)
                reader.wait(reader.start([np.asarray([time])]), threading.Event())
