"""Values that contradict their unit, undeclared marks of missing values and fields upside down are named, and stop
prepare before they enter statistics or packing; real fields never are."""

import os
import pathlib
import shutil

import netCDF4
import numpy as np
import pytest
import xarray as xr

from tests.sources.written_sources import TIMES, make_dataset
from weathermixer.archive.verify import describe_missing, verify_archive
from weathermixer.fields.units import plausible_range
from weathermixer.fields.variables import ERA5, Channel
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.prepare.statistics import check_fields, measure
from weathermixer.sources.sources import open_source

REAL = os.environ.get("WEATHERMIXER_REAL_DATA", "")


def prepare(dataset: xr.Dataset, path: pathlib.Path, name: str = "a", **options):
    dataset.to_netcdf(path / f"{name}.nc", encoding={name: {"_FillValue": None} for name in dataset.data_vars})
    source = open_source(path / f"{name}.nc", variables=list(dataset.data_vars))
    return prepare_archive(source, path / name, **options)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("2m_temperature", lambda x: x - 273.15, "2m_temperature at 2019-12-30T00:00: 96 of 96 values, such as -"),
        ("2m_temperature", lambda x: x * 1.8 - 459.67, "out of the range of 150 to 350 K"),
        ("geopotential", lambda x: x * 9.80665, "geopotential_500 .* out of the range of 38"),
        ("geopotential", lambda x: x / 9.80665, "geopotential_500 .* out of the range of 38"),
        (
            "temperature",
            lambda x: x.isel(level=slice(None, None, -1)).values,
            "temperature_50 at .* of 96 values, such as .* of 100 to 290 K",
        ),
    ],
)
def test_values_that_contradict_their_unit(tmp_path, name, change, message):
    dataset = make_dataset()[[name]]
    dataset[name] = dataset[name].copy(data=np.asarray(change(dataset[name]), np.float32))
    with pytest.raises(ValueError, match=message) as stopped:
        prepare(dataset, tmp_path)
    assert "--units=NAME=UNIT" in str(stopped.value)
    assert not (tmp_path / "a").exists()
    assert prepare(dataset, tmp_path, "kept", keep_faults=True).attributes["faults"]


@pytest.mark.parametrize("fill", [9.969209968386869e36, 1e20, 1e15, -9999.0, -999.0])
@pytest.mark.parametrize("name", ["2m_temperature", "my_variable"])
@pytest.mark.parametrize("when", [slice(None), slice(7, 8)])  # in the sample for packing, and not
def test_marks_of_missing_values_that_are_not_declared(tmp_path, fill, name, when):
    dataset = make_dataset()[["2m_temperature"]].rename({"2m_temperature": name})
    dataset[name].values[when, 2:4, 3:6] = fill
    with pytest.raises(ValueError, match=rf"{name} at .*: 6 of 96 values.*(out of the range|a mark of missing)"):
        prepare(dataset, tmp_path, dtype="float16")
    declared = dataset.copy()
    declared.to_netcdf(tmp_path / "b.nc", encoding={name: {"_FillValue": np.float32(fill)}})
    source = open_source(tmp_path / "b.nc", variables=[name])
    if when == slice(None):  # points that are missing at all times are no fault
        archive = prepare_archive(source, tmp_path / "b", times_per_shard=3)
        assert describe_missing(archive) == [f"{name} lacks 6 of 96 values, the same points at all times"]
        assert archive.attributes["faults"] == [] and archive.statistics.missing.tolist() == [6 * len(TIMES)]
        assert verify_archive(tmp_path / "b") == []
        return
    with pytest.raises(ValueError, match=r"6 missing \(NaN\) of 96 values"):
        prepare_archive(source, tmp_path / "b")
    archive = prepare_archive(source, tmp_path / "b", keep_faults=True)
    assert describe_missing(archive) == [f"{name} lacks 6 values, at 1 of 20 times other points than at the first"]


@pytest.mark.parametrize("changed", ["more", "fewer", "none", "all"])
def test_points_that_are_not_missing_at_all_times_are_a_fault(tmp_path, changed):
    """One fault, at the one time whose land is another; land that is the first time's is none, whatever the workers."""
    dataset = make_dataset()[["2m_temperature", "temperature"]]
    land = {"more": slice(2, 5), "fewer": slice(2, 3), "none": slice(0), "all": slice(None)}[changed]
    values = dataset["2m_temperature"].values
    kept = values[11].copy()
    values[:, 2:4] = np.nan
    values[11] = kept
    values[11, land] = np.nan
    count = {"more": 36, "fewer": 12, "none": 0, "all": 96}[changed]
    message = rf"2m_temperature at .*T18:00: {count} missing \(NaN\) of 96 values, and at the first time 24\nleave"
    with pytest.raises(ValueError, match=message):
        prepare_archive(open_source(dataset), tmp_path / "a", times_per_shard=4)
    archive = prepare_archive(open_source(dataset), tmp_path / "a", times_per_shard=4, keep_faults=True)
    total = 24 * (len(TIMES) - 1) + count
    assert describe_missing(archive) == [
        f"2m_temperature lacks {total} values, at 1 of 20 times other points than at the first"
    ]
    assert len(archive.attributes["faults"]) == 1


def test_a_packed_fill_that_is_not_declared(tmp_path):
    dataset = make_dataset()[["2m_temperature"]].rename({"2m_temperature": "snow"})
    packing = {"dtype": "int16", "scale_factor": 2e-3, "add_offset": 290.0, "_FillValue": None}
    dataset["snow"].values[:, 2:4, 3:6] = 290 - 2e-3 * 32767
    with pytest.warns(xr.SerializationWarning, match="without any _FillValue"):
        dataset.to_netcdf(tmp_path / "a.nc", encoding={"snow": packing})
    source = open_source(tmp_path / "a.nc", variables=["snow"])
    found = "6 of 96 values of snow .* are 224.466, packed as -32767.* --keep-faults; .* ncatted -a missing_value,snow"
    with pytest.raises(ValueError, match=found):
        prepare_archive(source, tmp_path / "o", dtype="float32")
    kept = prepare_archive(source, tmp_path / "o", dtype="float32", keep_faults=True)
    assert describe_missing(kept) == ["snow lacks 6 of 96 values, the same points at all times"]
    for value, gap in ((-32767, np.nan), (-32768, 224.466)):  # what ncatted does; the second: these are no gaps
        declared = shutil.copy(tmp_path / "a.nc", tmp_path / f"{value}.nc")
        with netCDF4.Dataset(declared, "a") as file:
            file["snow"].missing_value = np.int16(value)
        fields = open_source(declared, variables=["snow"]).read(slice(None))
        np.testing.assert_allclose(fields[:, 0, 2:4, 3:6], gap, atol=1e-3)
        np.testing.assert_array_equal(fields[:, 0, 4:], kept.store[:, 0, 4:].read().result())
    dataset["snow"].values[:] = np.maximum(dataset["snow"].values - 288, 0)  # the least value of many is zero
    packing |= {"scale_factor": 1e-3, "add_offset": 32.767}
    with pytest.warns(xr.SerializationWarning, match="without any _FillValue"):
        dataset.to_netcdf(tmp_path / "b.nc", encoding={"snow": packing})
    archive = prepare_archive(open_source(tmp_path / "b.nc", variables=["snow"]), tmp_path / "b", dtype="float32")
    np.testing.assert_allclose(archive.store[:, 0].read().result(), dataset.snow.values, atol=6e-4)


@pytest.mark.parametrize("time", [1, 7, 19])
def test_a_field_upside_down_is_named(tmp_path, time):
    dataset = make_dataset()[["2m_temperature", "temperature"]]
    slope = 12 * np.sin(np.deg2rad(dataset.latitude)).astype(np.float32)
    dataset = (dataset + slope).transpose("time", "level", "latitude", "longitude")
    dataset["2m_temperature"].values[time] = dataset["2m_temperature"].values[time, ::-1]
    source = open_source(dataset.transpose(..., "longitude"))
    when = np.datetime_as_string(TIMES[time], unit="m")
    with pytest.raises(ValueError, match=f"2m_temperature at {when}: it is upside down to the time before, or that is"):
        prepare_archive(source, tmp_path / "o", times_per_shard=4)
    left_out = open_source(dataset, exclude=[when[:13]])
    assert prepare_archive(left_out, tmp_path / "left_out").attributes["faults"] == []


def test_a_value_that_is_a_mark_by_chance_is_none(tmp_path):
    dataset = make_dataset()[["2m_temperature"]].rename({"2m_temperature": "count"})
    dataset["count"].values[:] = np.round(dataset["count"].values * 30)
    dataset["count"].values[:, 0, :2] = 9999
    assert prepare(dataset, tmp_path).attributes["faults"] == []


def test_ranges_are_wide_enough_and_narrow_enough():
    for channel in ERA5.dynamic:
        low, high = plausible_range(channel.variable, channel.level_hpa)
        assert low < high
        if "temperature" in channel.variable:
            assert low > 60 and high < 373.15  # no degrees Celsius or Fahrenheit
        if channel.variable == "geopotential" and channel.level_hpa <= 850:
            assert low / 9.80665 > 0 and 9.80665 * low > high  # no heights, and no geopotential that was multiplied
    assert plausible_range("tco3") == (-9e14, 9e14) and plausible_range("land_sea_mask")[1] < 2
    # the highest and lowest places of the standard atmosphere
    assert plausible_range("geopotential", 1)[0] < 9.80665 * 47.8e3 < plausible_range("geopotential", 1)[1]


@pytest.mark.skipif(not REAL, reason="WEATHERMIXER_REAL_DATA, the folder of real fields, is not set")
def test_real_fields_are_not_at_fault():
    for path in sorted(pathlib.Path(REAL).glob("*.zarr")):
        with xr.open_zarr(path, chunks=None) as dataset:
            for name in [name for name, array in dataset.data_vars.items() if "time" in array.dims]:
                array = dataset[name].transpose("time", ..., "latitude", "longitude")
                levels = array.level.values.tolist() if "level" in array.dims else [None]
                values = array.values.reshape(len(array.time), len(levels), *array.shape[-2:])
                channels = [Channel(str(name), level) for level in levels]
                before = None
                for time, fields in zip(array.time.values, values):
                    sums = measure(fields, None, shift=np.zeros(len(levels)), row_weights=np.ones(fields.shape[1]))
                    faults, _ = check_fields(fields, time, channels, sums, before=before)
                    assert [fault for fault in faults if "constant" not in fault] == []
                    before = fields
