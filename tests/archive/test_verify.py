"""Verification finds whatever byte was flipped, and says where it lies."""

import json
import pathlib
import random
import re

import numpy as np
import pytest

from tests.sources.written_sources import make_dataset
from weathermixer.archive.archive import Archive
from weathermixer.archive.layout import COMPRESSORS
from weathermixer.archive.verify import verify_archive
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.sources.sources import open_source


@pytest.fixture(params=COMPRESSORS)
def archive(tmp_path, request) -> Archive:
    source = open_source(make_dataset(), levels_hpa=[500, 50])
    return prepare_archive(source, tmp_path / "a", domain=2, tensor=2, times_per_shard=5, compressor=request.param)


def flip(path: pathlib.Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def chunk_position(shard: pathlib.Path, chunk: tuple[int, int, int], counts: tuple[int, int, int]) -> tuple[int, int]:
    """(offset, bytes) of an inner chunk, from the index at the shard's end: 16 bytes for each, and 4 of checksum."""
    index = np.frombuffer(shard.read_bytes()[-(16 * int(np.prod(counts)) + 4) : -4], "<u8").reshape(*counts, 2)
    offset, size = index[chunk]
    return int(offset), int(size)


def test_a_sound_archive_has_no_findings(archive):
    assert verify_archive(archive.path) == []


def test_every_flipped_byte_of_the_fields_is_found(archive):
    (shard,) = (pathlib.Path(archive.path) / "fields" / "c" / "2").rglob("0/0/0")
    sound = shard.read_bytes()
    chance = random.Random(0)
    for position in [0, len(sound) - 1, len(sound) - 5, *(chance.randrange(len(sound)) for _ in range(12))]:
        flip(shard, position, chance.randrange(8))
        findings = verify_archive(archive.path)
        assert findings, f"byte {position} of {len(sound)}"
        # the third shard holds times 10 to 14
        assert all(re.search("2020-01-01T1[28]|2020-01-02T|2020-01-01T2|2020-01-01T1", finding) for finding in findings)
        shard.write_bytes(sound)
    assert verify_archive(archive.path) == []


def test_a_flipped_byte_is_placed_by_time_channels_and_latitudes(archive):
    assert archive.store.chunk_layout.read_chunk.shape == (1, 4, 4, 12)
    (shard,) = (pathlib.Path(archive.path) / "fields" / "c" / "2").rglob("0/0/0")
    offset, size = chunk_position(shard, (3, 1, 0), (5, 2, 2))
    flip(shard, offset + size // 2)
    (finding,) = verify_archive(archive.path)
    assert finding.startswith("temperature_50 at 2020-01-02T06, latitudes 78.75 to 11.25: cannot be read: ")


def test_values_that_changed_are_placed_by_time_and_channel(archive):
    """Something wrote other values, properly: the chunk's own checksum holds, the field's does not."""
    import tensorstore as ts

    store = ts.open(archive.store.spec(), write=True, read=True, open=True).result()
    store[7, 2, 3, 4].write(np.float16(0.25)).result()
    assert verify_archive(archive.path) == ["geopotential_50 at 2019-12-31T18: its values changed"]


def test_a_missing_shard_is_found(archive):
    (shard,) = (pathlib.Path(archive.path) / "fields" / "c" / "0").rglob("0/0/0")
    shard.unlink()
    findings = verify_archive(archive.path)
    assert len(findings) == 5 * 2 * 2
    assert findings[0].startswith(
        "2m_temperature, geopotential_500, geopotential_50, temperature_500 (one chunk) at 2019-12-30T00"
    )


@pytest.mark.parametrize("name", ["mean", "latitude", "static", "checksum"])
def test_a_flipped_byte_of_a_small_array(archive, name):
    (chunk,) = [path for path in (pathlib.Path(archive.path) / name / "c").rglob("*") if path.is_file()]
    flip(chunk, chunk.stat().st_size // 2)
    findings = verify_archive(archive.path)
    assert len(findings) == 1
    assert "cannot be opened" in findings[0]


def test_changed_attributes(archive):
    path = pathlib.Path(archive.path) / "zarr.json"
    document = json.loads(path.read_text())
    document["attributes"]["manifest"]["mean"] = "0" * 64
    path.write_text(json.dumps(document))
    assert verify_archive(archive.path) == ["mean: its values changed"]
    path.write_text(path.read_text()[:-20])
    (finding,) = verify_archive(archive.path)
    assert "not JSON" in finding


def test_what_is_no_archive(tmp_path):
    (finding,) = verify_archive(tmp_path / "nothing")
    assert "there is no archive at" in finding
