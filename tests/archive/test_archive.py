"""The archive: what is written is read, by us and by xarray; what is not an archive is refused by name."""

import json
import os
import pathlib

import numpy as np
import pytest
import xarray

from weathermixer.archive.archive import STATISTICS, Statistics, open_archive
from weathermixer.archive.layout import COMPRESSORS, Layout
from weathermixer.fields.grid import Grid
from weathermixer.fields.variables import Channel
from weathermixer.prepare.writer import create_archive, publish, write_statistics

GRID = Grid(np.array([67.5, 22.5, -22.5, -67.5]), np.arange(8) * 45.0)
TIMES = np.datetime64("2000-01-01", "ns") + np.arange(4) * np.timedelta64(6, "h")


CHANNELS = (Channel("2m_temperature"), Channel("geopotential", 500))


def create(path, *, times=TIMES, channels=CHANNELS, **options):
    layout = Layout(shape=(len(times), len(channels), *GRID.shape), static=0, times_per_shard=2, **options)
    return create_archive(
        path, times=times, grid=GRID, channels=channels, static={}, scale=np.ones(len(channels)),
        offset=np.zeros(len(channels)), layout=layout, attributes={"step_hours": 6},
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "int16", "float32"])
@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_round_trip(tmp_path, make_archive, dtype, compressor):
    archive = make_archive(missing=(3,), dtype=dtype, compressor=compressor, domain=4, tensor=2)
    assert archive.store.dtype.name == dtype and archive.store.shape == (15, 4, 8, 16)
    assert archive.times[2:4].tolist() == [946728000 * 10**9, 946771200 * 10**9]
    assert [channel.name for channel in archive.channels][1:3] == ["geopotential_500", "temperature_850"]
    assert archive.attributes["domain"] == 4 and archive.attributes["software"].startswith("weathermixer ")
    assert set(archive.static) == {"land_sea_mask", "geopotential_at_surface"}
    assert archive.grid.shape == (8, 16) and archive.step_hours == 6
    raw = archive.store.read().result().astype(np.float64)
    physical = raw * archive.scale[:, None, None] + archive.offset[:, None, None]
    np.testing.assert_allclose(physical.mean(axis=(0, 2, 3)), archive.statistics.mean, rtol=1e-2)


def test_xarray_opens_it(make_archive):
    archive = make_archive(missing=(3,))
    dataset = xarray.open_zarr(archive.path)
    assert dataset.fields.dims == ("time", "channel", "latitude", "longitude")
    assert dataset.channel.values.tolist() == [channel.name for channel in archive.channels]
    assert dataset.static_channel.values.tolist() == list(archive.static)
    np.testing.assert_array_equal(dataset.time.values.astype("datetime64[ns]"), archive.times)
    np.testing.assert_array_equal(dataset.fields.values, archive.store.read().result())
    np.testing.assert_array_equal(dataset.missing.values, 0)


def test_levels_and_units_are_kept_and_not_guessed_from_names(tmp_path):
    channels = [Channel("soil_temperature_level_1", units="degC"), Channel("vorticity", 850, "s**-1"), Channel("t", 5)]
    create(tmp_path / "a", channels=[*channels, Channel("2m_temperature")])
    zeros = dict.fromkeys(STATISTICS, np.zeros(4)) | {"missing": np.zeros(4, np.int64)}
    write_statistics(tmp_path / "a", Statistics(**zeros))
    publish(tmp_path / "a")
    found = open_archive(tmp_path / "a").channels
    assert [(channel.variable, channel.level_hpa, channel.units) for channel in found] == [
        ("soil_temperature_level_1", None, "degC"), ("vorticity", 850, "s**-1"),
        ("t", 5, ""), ("2m_temperature", None, "K"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("channels", "static", "grid", "options", "expected"),
    [
        # 69 + 3 channels at 0.25 degrees: 3 divides the 36 of a part and the 69 that are stored
        (69, 3, (720, 1440), dict(domain=8, tensor=2), (1, 3, 90, 1440)),
        (72, 0, (720, 1440), dict(domain=8), (1, 4, 90, 1440)),
        (72, 0, (720, 1440), dict(dtype="float32"), (1, 1, 720, 1440)),
        # small grids: whole parts, even where the last chunk is not full
        (69, 3, (32, 64), {}, (1, 69, 32, 64)),
        (69, 3, (32, 64), dict(tensor=2), (1, 36, 32, 64)),
        (5, 0, (32, 64), dict(domain=2, tensor=2), (1, 3, 16, 64)),
    ],
)
def test_chunks_are_cut_for_the_mesh(channels, static, grid, options, expected):
    assert Layout(shape=(1, channels, *grid), static=static, times_per_shard=1, **options).chunk == expected


def test_unpublished_and_foreign_stores_are_refused(tmp_path):
    path = str(tmp_path / "a")
    with pytest.raises(ValueError, match="there is no archive at"):
        open_archive(path)
    create(path)
    with pytest.raises(ValueError, match="incomplete.*not published"):
        open_archive(path)
    os.rename(path + ".partial", path)
    with pytest.raises(ValueError, match="incomplete"):
        open_archive(path)
    document = pathlib.Path(path, "zarr.json")
    group = json.loads(document.read_text())
    group["attributes"] |= {"complete": True, "format_version": 7}
    document.write_text(json.dumps(group))
    with pytest.raises(ValueError, match="format version 7, this software reads 2: make it again with prepare"):
        open_archive(path)
    document.write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}))
    with pytest.raises(ValueError, match="not a WeatherMixer archive"):
        open_archive(path)
    document.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        open_archive(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(dtype="bfloat16"), "dtype='bfloat16' must be"),
        (dict(times=TIMES[::-1]), "whole hours that ascend"),
        (dict(times=TIMES + np.timedelta64(1, "m")), "whole hours"),
        (dict(domain=3), "latitude=4 is not divisible by domain=3"),
        (dict(tensor=0), "tensor=0"),
        (dict(compressor="gzip"), "compressor='gzip' must be one of"),
    ],
)
def test_bad_inputs_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        create(tmp_path / "a", **changes)
    assert not (tmp_path / "a.partial").exists()


def test_an_existing_archive_is_not_overwritten(make_archive):
    archive = make_archive()
    with pytest.raises(ValueError, match="exists: delete it"):
        create(archive.path)


def test_creating_again_goes_on(tmp_path):
    create(tmp_path / "a")[:2].write(np.full((2, 2, 4, 8), 3, np.float16)).result()
    assert create(tmp_path / "a")[:2].read().result().min() == 3
