"""Amounts per hour become sums over a step, however they lie in files."""

import numpy as np
import pytest
import xarray as xr

from weathermixer.prepare.prepare import prepare_archive
from weathermixer.sources.sources import open_source

HOURS = np.datetime64("2020-01-01T00", "ns") + np.arange(96) * np.timedelta64(1, "h")
LAT, LON = 90 - (np.arange(8) + 0.5) * 22.5, np.arange(12) * 30.0
RAIN = "total_precipitation_6hr"


def make_hourly(name="total_precipitation", hours=HOURS, units="m"):
    """Hourly amounts and temperatures."""
    rng = np.random.default_rng(0)
    shape, dims = (len(HOURS), 8, 12), ("time", "latitude", "longitude")
    rain = rng.gamma(0.5, 1e-4, size=shape).astype(np.float32)
    warmth = rng.normal(280, 5, size=shape).astype(np.float32)
    coords = {"time": HOURS, "latitude": LAT, "longitude": LON}
    data = {name: (dims, rain, {"units": units}), "2m_temperature": (dims, warmth, {"units": "K"})}
    return xr.Dataset(data, coords).sel(time=hours), rain


def sums(rain, times):
    """Of the six hours up to each time."""
    last = np.searchsorted(HOURS, times)
    return np.stack([rain[n - 5 : n + 1].astype(np.float64).sum(axis=0) for n in last])


@pytest.mark.parametrize("name", ["total_precipitation", "tp"])
def test_a_sum_ends_at_its_time_and_starts_when_there_are_enough(tmp_path, name):
    dataset, rain = make_hourly(name)
    # files end amid the sums: three of ten hours, then the others
    for n, part in enumerate((slice(0, 10), slice(10, 20), slice(20, 30), slice(30, None))):
        dataset.isel(time=part).to_netcdf(tmp_path / f"{n}.nc")
    source = open_source(tmp_path / "*.nc", variables=["2m_temperature", RAIN])
    assert source.step_hours == 6 and source.times[0] == HOURS[6] and source.times[-1] == HOURS[90]
    np.testing.assert_allclose(source.read(slice(None))[:, 1], sums(rain, source.times), rtol=1e-5)
    archive = prepare_archive(source, tmp_path / "a", dtype="float32", times_per_shard=4)
    found = np.asarray(archive.store.read().result())
    np.testing.assert_allclose(found[:, 1], sums(rain, archive.times), rtol=1e-5)
    warmth = dataset["2m_temperature"].sel(time=archive.times).values
    np.testing.assert_array_equal(found[:, 0], warmth)
    assert f"{RAIN}: the sum of 6 values of {name}, up to its time" in source.account
    assert [channel.units for channel in archive.channels] == ["K", "m"]


def test_sums_are_in_their_own_units_and_need_every_hour(tmp_path):
    dataset, rain = make_hourly(units="mm", hours=np.delete(HOURS, 20))
    dataset.to_netcdf(tmp_path / "a.nc")
    source = open_source(tmp_path / "a.nc", variables=[RAIN])
    assert HOURS[18] in source.times and HOURS[24] not in source.times and HOURS[24] in source.missing_times
    np.testing.assert_allclose(source.read(slice(None))[:, 0], sums(rain, source.times) / 1000, rtol=1e-5)
    assert any("lacks" in line or "missing between" in line for line in source.account)


def test_a_variable_that_is_there_is_not_summed_and_one_that_cannot_be_is_refused(tmp_path):
    dataset, rain = make_hourly()
    own = dataset.isel(time=slice(0, None, 6)).rename(total_precipitation=RAIN)
    np.testing.assert_array_equal(open_source(own, variables=[RAIN]).read([3])[0, 0], rain[18])
    with pytest.raises(ValueError, match=r"every 6 h, of which .*is no sum: .*--rename=total_precipitation=total_prec"):
        open_source(dataset.isel(time=slice(0, None, 6)), variables=[RAIN])
    renamed = open_source(dataset.isel(time=slice(0, None, 6)), variables=[RAIN], rename={"total_precipitation": RAIN})
    np.testing.assert_array_equal(renamed.read([3])[0, 0], rain[18])


def test_hours_that_lie_there_twice_with_other_values_are_refused(tmp_path):
    dataset, _ = make_hourly()
    dataset.isel(time=slice(0, 20)).to_netcdf(tmp_path / "0.nc")
    again = dataset.isel(time=slice(18, None))
    again.to_netcdf(tmp_path / "1.nc")
    source = open_source(tmp_path / "*.nc", variables=[RAIN])
    assert any(f"2 times of {RAIN} are there again" in line for line in source.account), source.account
    with pytest.raises(ValueError, match=f"{RAIN} at 2020-01-01T18:00 lies twice"):
        open_source([dataset.isel(time=slice(0, 20)), again * 1.5], variables=[RAIN])
