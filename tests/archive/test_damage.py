"""Whatever is wrong with a shard, reading it ends with the time and place that it holds, never with other values."""

import threading

import numpy as np
import pytest

from weathermixer.archive import storage
from weathermixer.archive.archive import open_archive
from weathermixer.archive.reader import Reader, Unreadable
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel.mesh import make_mesh

SHARD = "fields/c/1/0/0/0"


@pytest.mark.parametrize(
    "where, compressor", [("", "none"), ("", "zstd"), ("", "lz4"), pytest.param("s3", "none", marks=pytest.mark.slow)]
)
def test_what_is_wrong_is_named(make_archive, request, where, compressor):
    path = f"{request.getfixturevalue('s3_bucket')}/damaged" if where else None
    archive = make_archive(path, domain=2, shape=(8, 16), compressor=compressor)  # 4 times of 2 chunks in a file
    channels, folder = ChannelSet(archive.channels), storage.open_folder(archive.path)
    sound = bytes(folder.read(SHARD).result().value)
    index = 8 * 16 + 4
    chunks = len(sound) - index
    if compressor == "none":
        assert chunks == 8 * (512 + 4)  # with a checksum each

    def damaged(position):
        content = bytearray(sound)
        content[position] ^= 1
        return bytes(content)

    for content, message in [
        (damaged(100), "[Dd]igest mismatch"),
        (damaged(chunks - 1), "[Dd]igest mismatch"),
        (damaged(len(sound) - 60), "[Dd]igest mismatch"),
        (damaged(len(sound) - 1), "[Dd]igest mismatch"),
        (bytes(len(sound)), "[Dd]igest mismatch"),
        (sound[:50], "byte range|range is not"),
        (sound[:-1], "[Dd]igest mismatch"),
        (b"", "byte range|range is not"),
        (None, "is missing"),
    ]:
        folder.write(SHARD, content).result()  # None deletes it
        with pytest.raises(Unreadable, match=f"cannot read time 2000-01-0[12].* latitudes .*({message})"):
            for time in (4, 5, 6, 7):
                reader = Reader(open_archive(archive.path), channels, make_mesh(1, 2, 1), 1)
                reader.wait(reader.start([np.asarray([time])]), threading.Event())
