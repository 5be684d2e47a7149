"""Files are known by what they hold: data are read, whatever their name, and what is no data is said in a line."""

import bz2
import gzip
import zipfile

import netCDF4
import numpy as np
import pytest
import xarray as xr

from tests.sources.written_sources import frames_of, make_dataset, write_zarr
from weathermixer.sources.formats import find_paths
from weathermixer.sources.sources import Source, open_source


@pytest.fixture(scope="module")
def truth() -> xr.Dataset:
    return make_dataset(levels=(500,))


def check(source: Source, truth: xr.Dataset) -> None:
    np.testing.assert_array_equal(source.times, truth.time.values)
    np.testing.assert_array_equal(source.read(slice(None)), frames_of(truth, source.channels))


@pytest.mark.parametrize("name", ["a.nc", "era5", "era5.2020", "a.grib", "a [1] {b} #c 50%.nc", "*.nc", "~x.nc"])
@pytest.mark.parametrize("kind", ["NETCDF4", "NETCDF3_CLASSIC", "NETCDF3_64BIT", "NETCDF3_64BIT_DATA"])
def test_a_netcdf_file_of_any_name(tmp_path, truth, name, kind):
    write(truth, tmp_path / name, kind)
    check(open_source(tmp_path / name), truth)


@pytest.mark.parametrize("name", ["{a}", "[a]", "a b", "50%#"])
def test_folders_of_any_name(tmp_path, truth, name):
    folder = tmp_path / name
    folder.mkdir()
    for number in range(2):
        truth.isel(time=slice(10 * number, 10 * number + 10)).to_netcdf(folder / f"part[{number}].nc")
    check(open_source(folder / "part*.nc"), truth)
    check(open_source(folder), truth)
    check(open_source(folder / "part[0].nc"), truth.isel(time=slice(0, 10)))
    check(open_source(tmp_path / "*" / "*.nc"), truth)
    check(open_source(write_zarr(truth, tmp_path / "store.zarr").rename(folder / "store.zarr")), truth)
    check(open_source(tmp_path / "**" / "*.nc"), truth)


def test_files_globs_stores_and_open_datasets_together(tmp_path, truth):
    truth.isel(time=slice(0, 3)).to_netcdf(tmp_path / "a.nc")
    for number in (1, 2):
        write_zarr(
            truth.isel(time=slice(3 * number, 3 * number + 3)), tmp_path / f"y{number}.zarr", zarr_format=number + 1
        )
    (tmp_path / "folder" / "2020").mkdir(parents=True)
    truth.isel(time=slice(9, 12)).to_netcdf(tmp_path / "folder" / "2020" / "b.nc")
    write_zarr(truth.isel(time=slice(12, 15)), tmp_path / "folder" / "c.zarr")
    (tmp_path / "folder" / ".hidden").write_text("not looked at")
    specs = [tmp_path / "a.nc", f"{tmp_path}/y*.zarr", tmp_path / "folder", truth.isel(time=slice(15, 20))]
    source = open_source(specs)
    check(source, truth)
    assert source.name.startswith(f"{tmp_path}/a.nc, {tmp_path}/y*.zarr, ")


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="no file at .*era5_.2019,2020..nc; braces are the shell's to expand"):
        find_paths(f"{tmp_path}/era5_{{2019,2020}}.nc")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is an empty folder"):
        find_paths(f"{tmp_path}/empty")
    (tmp_path / "gone.nc").symlink_to(tmp_path / "nowhere.nc")
    with pytest.raises(OSError, match="gone.nc"):
        open_source(tmp_path / "gone.nc")


def write(dataset: xr.Dataset, path, kind: str, unlimited: tuple[str, ...] = ()) -> None:
    """Writes netCDF of any kind: xarray does not write CDF-5."""
    if kind != "NETCDF3_64BIT_DATA":
        dataset.to_netcdf(path, format=kind, unlimited_dims=unlimited)
        return
    classic = path.with_suffix(".classic")
    dataset.to_netcdf(classic, format="NETCDF3_CLASSIC", unlimited_dims=unlimited)
    with netCDF4.Dataset(classic) as old, netCDF4.Dataset(path, "w", format=kind) as new:
        for name, dim in old.dimensions.items():
            new.createDimension(name, None if dim.isunlimited() else len(dim))
        for name, variable in old.variables.items():
            copy = new.createVariable(name, variable.dtype, variable.dimensions)
            copy.setncatts({key: value for key, value in variable.__dict__.items() if key != "_FillValue"})
            copy[:] = variable[:]
    classic.unlink()


HTML = b"<!DOCTYPE html>\n<html><head><title>503 Service Unavailable</title></head></html>\n"


@pytest.mark.parametrize(
    "content, message",
    [
        (HTML, r"download.nc is text, '<!DOCTYPE html> <html><head><title>503"),
        (b'{"message": "request too large"}', 'is text, \'."message": "request too large".'),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is text, 'version https://git-lfs"),
        (b"", "download.nc is empty: fetch it again"),
        (bytes(range(200, 256)) * 40, r"is neither netCDF nor GRIB: it begins with b'\\xc8"),
        (gzip.compress(b"x" * 99, mtime=0), "is packed by gzip: gunzip it, and give what comes out"),
        (bz2.compress(b"x" * 99), "is packed by bzip2: bunzip2 it"),
    ],
)
def test_what_is_no_data_is_said_in_a_line(tmp_path, content, message):
    (tmp_path / "download.nc").write_bytes(content)
    for spec in (tmp_path / "download.nc", tmp_path):
        with pytest.raises(ValueError, match=message) as error:
            open_source(spec)
        assert "\n" not in str(error.value)


def test_a_zip_is_named_and_its_remedy_works(tmp_path, truth):
    truth.to_netcdf(tmp_path / "inner.nc")
    with zipfile.ZipFile(tmp_path / "download.nc", "w") as file:
        file.write(tmp_path / "inner.nc", "data_stream-oper_stepType-instant.nc")
    with pytest.raises(ValueError, match="download.nc is a zip archive, as the CDS sends some netCDF: unzip it"):
        open_source(tmp_path / "download.nc")
    zipfile.ZipFile(tmp_path / "download.nc").extractall(tmp_path / "unzipped")
    check(open_source(tmp_path / "unzipped"), truth)


@pytest.mark.parametrize("kind", ["NETCDF4", "NETCDF3_CLASSIC", "NETCDF3_64BIT", "NETCDF3_64BIT_DATA"])
@pytest.mark.parametrize("unlimited", [(), ("time",)])
@pytest.mark.parametrize("left", [40, 600, 0.5, -4])
def test_netcdf_that_is_cut_off_is_refused(tmp_path, truth, kind, unlimited, left):
    """The netCDF library opens a netCDF 3 file that is cut off as if it were whole, and reads zeros past its end."""
    write(truth, tmp_path / "a.nc", kind, unlimited)
    whole = (tmp_path / "a.nc").read_bytes()
    (tmp_path / "a.nc").write_bytes(whole[: int(left * len(whole)) if isinstance(left, float) else left])
    with pytest.raises(ValueError, match="a.nc cannot be opened as netCDF: it is cut off or damaged") as error:
        open_source(tmp_path / "a.nc")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "entries, value, index",
    [
        (["0001", "0005"], "0005", 1),
        (["0001", "0005"], "5", 1),
        ([1, 5], "0005", 1),
        ([0, 5], 0, 0),
        ([0.5, 1.0], "1", 1),
        (["control", "high"], "high", 1),
        (None, "1", 1),
    ],
)
def test_entries_are_chosen_as_they_are_written(tmp_path, truth, entries, value, index):
    fields = truth[["2m_temperature", "temperature"]]
    both = xr.concat([fields, fields + 1], "kind").assign_coords({} if entries is None else {"kind": entries})
    both.to_netcdf(tmp_path / "a.nc")
    check(open_source(tmp_path / "a.nc", select={"kind": value}), fields + np.float32(index))
    offered = ", ".join(map(str, entries or [0, 1]))
    for wrong in ("7", "-1", "nothing"):
        with pytest.raises(ValueError, match=f"kind={wrong}: there is no such kind; it has {offered}"):
            open_source(tmp_path / "a.nc", select={"kind": wrong})
    with pytest.raises(ValueError, match="member=1: there is no member; dimensions are kind, latitude"):
        open_source(tmp_path / "a.nc", select={"member": 1})
    with pytest.raises(ValueError, match="select level=500: --period, --step and --exclude choose times"):
        open_source(tmp_path / "a.nc", select={"level": 500})
