"""Plain reads of files give what TensorStore gives, of whole chunks alone, and name what is wrong with them."""

import pathlib
import threading

import numpy as np
import pytest

from weathermixer.archive.archive import open_archive
from weathermixer.archive.files import open_files
from weathermixer.archive.reader import Reader, Unreadable
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel.mesh import make_mesh

NAMES = tuple(f"temperature_{level}" for level in (50, 100, 200, 300, 500, 700, 850, 1000, 925, 600))
# seven channels in groups of four: the last chunk of a frame is padded
LAYOUTS = [
    dict(names=NAMES, static=(), domain=4, tensor=5, shape=(16, 1200)),
    dict(names=NAMES, static=(), domain=1, tensor=1, shape=(8, 16), times_per_shard=3),
    dict(names=NAMES[:7], static=("land_sea_mask",), domain=2, tensor=2, shape=(8, 16), dtype="float32"),
]


def read(reader, times):
    parts = reader.wait(reader.start([np.asarray(times)]), threading.Event())[0]
    return [np.array(values) for _, values in parts]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mesh_shape", [(1, 1, 1), (1, 4, 1), (2, 2, 2), (1, 1, 8)])
@pytest.mark.parametrize("order", [slice(None), slice(4), slice(1, 7), slice(None, None, -1)])
def test_they_equal_tensorstores(make_archive, monkeypatch, layout, mesh_shape, order):
    archive = make_archive(**layout)
    channels = ChannelSet(archive.channels[order], tuple(archive.static), multiple=8)
    readers = [Reader(archive, channels, make_mesh(*mesh_shape), 4)]
    monkeypatch.setattr("weathermixer.archive.reader.open_files", lambda archive: None)
    readers.append(Reader(archive, channels, make_mesh(*mesh_shape), 4))
    found, expected = (read(reader, [5, 0, 13, 7]) for reader in readers)
    for values, exact in zip(found, expected, strict=True):
        np.testing.assert_array_equal(values, exact)


def test_whole_chunks_alone(make_archive):
    archive = make_archive(**LAYOUTS[2])
    assert archive.store.chunk_layout.read_chunk.shape == (1, 4, 4, 16)
    files = open_files(archive)
    for wanted, lats, whole in [
        (range(7), (0, 8), True),
        (range(4), (4, 8), True),
        (range(4, 7), (0, 4), True),  # the last of the archive fill no chunk
        ([4, 5, 6, 0, 1, 2, 3], (0, 8), False),  # the short one has to be the last
        (range(3), (0, 8), False),
        (range(2, 6), (0, 8), False),
        ([0, 2, 1, 3], (0, 8), False),
        ([], (0, 8), False),
        (range(4), (2, 6), False),
        (range(4), (0, 2), False),
    ]:
        assert files.holds(np.array(wanted, np.int64), lats) == whole, (wanted, lats)
    for options in (dict(compressor="zstd"), dict(compressor="lz4")):
        assert open_files(make_archive(seed=len(options["compressor"]), **options)) is None


def test_what_is_wrong_is_named(make_archive):
    archive = make_archive(domain=2, shape=(8, 16))  # 4 times of 2 chunks in a file, 512 bytes and a checksum each
    (mesh, channels), shard = (
        (make_mesh(1, 2, 1), ChannelSet(archive.channels)),
        pathlib.Path(archive.path, "fields/c/1/0/0/0"),
    )
    sound = shard.read_bytes()
    assert len(sound) == 8 * (512 + 4) + 8 * 16 + 4

    def damaged(position):
        content = bytearray(sound)
        content[position] ^= 1
        return bytes(content)

    for content, message in [
        (damaged(100), "entry .* is damaged: its CRC-32C differs"),
        (damaged(513), "entry .* is damaged: its CRC-32C differs"),
        (damaged(len(sound) - 60), "its index is damaged: its CRC-32C differs"),
        (damaged(len(sound) - 1), "its index is damaged: its CRC-32C differs"),
        (sound[:50], "is cut short: it has no index"),
        (b"", "is cut short: it has no index"),
        (None, "is missing"),
    ]:
        shard.write_bytes(content) if content is not None else shard.unlink()
        with pytest.raises(Unreadable, match=f"cannot read time 2000-01-0[12].* latitudes .*{message}"):
            for time in (4, 5, 6, 7):
                read(Reader(open_archive(archive.path), channels, mesh, 1), [time])
