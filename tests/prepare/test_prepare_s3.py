"""Object storage: a source read from it, an archive written to it, through a server that speaks the S3 protocol."""

import numpy as np
import pytest
import xarray as xr

from tests.sources.written_sources import frames_of, make_dataset, write_grib, write_zarr
from weathermixer.archive.archive import open_archive
from weathermixer.archive.verify import verify_archive
from weathermixer.prepare import shards
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.sources.sources import open_source

pytest.importorskip("s3fs", reason="no s3fs: pip install 'weathermixer[cloud]'")


def test_an_archive_on_s3_is_that_on_disk(tmp_path, s3_bucket):
    source = open_source(make_dataset())
    local = prepare_archive(source, tmp_path / "a", domain=2, times_per_shard=5)
    remote = prepare_archive(source, f"{s3_bucket}/deep/a", domain=2, times_per_shard=5)
    assert remote.attributes["checksum"] == local.attributes["checksum"]
    np.testing.assert_array_equal(remote.store.read().result(), local.store.read().result())
    assert verify_archive(f"{s3_bucket}/deep/a") == []
    with pytest.raises(ValueError, match="exists: delete it"):
        prepare_archive(source, f"{s3_bucket}/deep/a", domain=2, times_per_shard=5)
    with xr.open_zarr(f"{s3_bucket}/deep/a", chunks=None) as opened:
        np.testing.assert_array_equal(opened.fields[3].values, local.store[3].read().result())


def test_it_goes_on_there_and_is_not_read_before(s3_bucket, monkeypatch):
    source = open_source(make_dataset())
    make_shard = shards._make_shard

    def stopping(task, times, blocks, earlier):
        if task.first + times.start == 15:
            raise InterruptedError
        return make_shard(task, times, blocks, earlier)

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(shards, "_make_shard", stopping)
        prepare_archive(source, f"{s3_bucket}/a", times_per_shard=5)
    with pytest.raises(ValueError, match="s3://weather/a is incomplete"):
        open_archive(f"{s3_bucket}/a")
    archive = prepare_archive(source, f"{s3_bucket}/a", times_per_shard=5)
    whole = prepare_archive(source, f"{s3_bucket}/b", times_per_shard=5)
    assert archive.attributes["checksum"] == whole.attributes["checksum"]


@pytest.mark.parametrize("zarr_format", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_a_source_on_s3(tmp_path, s3_bucket, zarr_format):
    import s3fs

    dataset = make_dataset()
    path = write_zarr(dataset, tmp_path / "source.zarr", zarr_format=zarr_format)
    s3fs.S3FileSystem().put(str(path), f"{s3_bucket}/source.zarr", recursive=True)
    source = open_source(f"{s3_bucket}/source.zarr")
    np.testing.assert_array_equal(source.read(slice(None)), frames_of(dataset, source.channels))


def test_files_on_s3(tmp_path, s3_bucket, monkeypatch):
    import s3fs

    monkeypatch.setenv("WEATHERMIXER_CACHE", str(tmp_path / "cache"))
    dataset = make_dataset(levels=(500,))
    for number in range(2):
        part = dataset.isel(time=slice(10 * number, 10 * number + 10))
        part.to_netcdf(tmp_path / f"{number}.nc")
        s3fs.S3FileSystem().put(str(tmp_path / f"{number}.nc"), f"{s3_bucket}/era5/{number}.nc")
    remote = prepare_archive(open_source(f"{s3_bucket}/era5/*.nc"), tmp_path / "a")
    local = prepare_archive(open_source(f"{tmp_path}/?.nc"), tmp_path / "b")
    assert remote.attributes["checksum"] == local.attributes["checksum"]
    # one that was written anew is fetched anew
    changed = dataset.isel(time=slice(0, 10)) * np.float32(0.99)
    changed.to_netcdf(tmp_path / "0.nc")
    s3fs.S3FileSystem().put(str(tmp_path / "0.nc"), f"{s3_bucket}/era5/0.nc")
    source = open_source(f"{s3_bucket}/era5/0.nc")
    np.testing.assert_array_equal(source.read([0]), frames_of(changed, source.channels)[:1])
    with pytest.raises(ValueError, match="no file at s3://weather/era6/"):
        open_source(f"{s3_bucket}/era6/*.nc")


def test_a_grib_file_on_s3(tmp_path, s3_bucket, monkeypatch):
    pytest.importorskip("cfgrib", reason="no cfgrib: pip install 'weathermixer[grib]'")
    import s3fs

    monkeypatch.setenv("WEATHERMIXER_CACHE", str(tmp_path / "cache"))
    dataset = make_dataset(levels=(500,))[["temperature"]].isel(time=slice(0, 3))
    where = {"latitude": dataset.latitude.values, "longitude": dataset.longitude.values}
    values = dataset.temperature.values[:, 0]
    fields = [("t", values[n], dataset.time.values[n], 500, {}) for n in range(3)]
    write_grib(tmp_path / "a.grib", fields, **where)
    (tmp_path / "cut.grib").write_bytes((tmp_path / "a.grib").read_bytes()[:-50])
    for name in ("a.grib", "cut.grib"):
        s3fs.S3FileSystem().put(str(tmp_path / name), f"{s3_bucket}/gfs/{name}")
    remote, local = open_source(f"{s3_bucket}/gfs/a.grib"), open_source(tmp_path / "a.grib")
    np.testing.assert_array_equal(remote.times, dataset.time.values)
    np.testing.assert_array_equal(remote.read(slice(None)), local.read(slice(None)))
    np.testing.assert_allclose(remote.read(slice(None))[:, 0], values, atol=1e-6 * np.ptp(values))
    assert f"read from a copy in the cache, fetched once: {s3_bucket}/gfs/a.grib" in remote.account
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".idx"]  # nothing is written beside it
    with pytest.raises(ValueError, match=f"{s3_bucket}/gfs/cut.grib cannot be read as GRIB") as error:
        open_source(f"{s3_bucket}/gfs/cut.grib")
    assert str(tmp_path) not in str(error.value)


def test_a_bucket_that_is_not_there(s3_bucket):
    source = open_source(make_dataset())
    with pytest.raises(ValueError, match="s3://absent/a cannot be written: .*[Bb]ucket"):
        prepare_archive(source, "s3://absent/a")
    with pytest.raises(ValueError, match="s3://absent/a cannot be opened as a Zarr store"):
        open_source("s3://absent/a")
