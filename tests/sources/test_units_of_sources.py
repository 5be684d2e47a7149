"""Every file's units are its own, and what comes out is SI; what is not understood is named with file and remedy."""

import numpy as np
import pytest
import xarray as xr

from tests.sources.written_sources import TIMES, frames_of, make_dataset
from weathermixer.fields.units import GRAVITY
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.sources.sources import open_source

DATASET = make_dataset()


def write(dataset: xr.Dataset, path, **units: str) -> str:
    for name, unit in units.items():
        dataset[name].attrs["units"] = unit
    dataset.to_netcdf(path)
    return str(path)


@pytest.mark.parametrize("unit", ["degC", "deg_C", "Celsius", "°C", "deg. C", "degrees Celsius"])
def test_degrees_celsius_in_any_spelling(tmp_path, unit):
    celsius = DATASET[["2m_temperature"]].rename({"2m_temperature": "t2m"}) - 273.15
    source = open_source(write(celsius, tmp_path / "a.nc", t2m=unit))
    np.testing.assert_allclose(source.read(slice(None)), frames_of(DATASET, source.channels), rtol=1e-6)


@pytest.mark.parametrize("units", [("K", "degC"), ("degC", "K")])
def test_units_that_change_between_files(tmp_path, units):
    for number, unit in enumerate(units):
        part = DATASET[["2m_temperature"]].isel(time=slice(10 * number, 10 * number + 10))
        part = part - (273.15 if unit == "degC" else 0)
        write(part, tmp_path / f"year{number}.nc", **{"2m_temperature": unit})
    source = open_source(tmp_path / "year*.nc")
    np.testing.assert_allclose(source.read(slice(None)), frames_of(DATASET, source.channels), rtol=1e-6)


@pytest.mark.parametrize("unit, factor", [("mm", 1e-3), ("kg m-2", 1e-3), ("kg m**-2", 1e-3), ("m", 1.0), ("cm", 0.01)])
def test_rain(tmp_path, unit, factor):
    rain = np.abs(DATASET[["2m_temperature"]] - 280).rename({"2m_temperature": "total_precipitation_6hr"}) * 1e-5
    source = open_source(write(rain / factor, tmp_path / "a.nc", total_precipitation_6hr=unit))
    np.testing.assert_allclose(source.read(slice(None))[:, 0], rain.total_precipitation_6hr.values, rtol=1e-5)


@pytest.mark.parametrize("unit, factor", [("gpm", GRAVITY), ("m", GRAVITY), ("dam", 10 * GRAVITY), ("J/kg", 1.0)])
def test_geopotential_from_heights(tmp_path, unit, factor):
    heights = DATASET[["geopotential"]].rename(geopotential="hgt") / factor
    source = open_source(write(heights, tmp_path / "a.nc", hgt=unit), rename={"hgt": "geopotential"})
    np.testing.assert_allclose(source.read(slice(None)), frames_of(DATASET, source.channels), rtol=1e-5)


def test_humidity_of_cmip6_is_in_units_of_one(tmp_path):
    humid = (DATASET[["temperature"]] * 1e-5).rename(temperature="hus", level="plev", latitude="lat", longitude="lon")
    humid = humid.assign_coords(plev=("plev", humid.plev.values * 100.0, {"units": "Pa"}))
    source = open_source(write(humid, tmp_path / "a.nc", hus="1"), levels_hpa=[500])
    np.testing.assert_array_equal(source.read(slice(None))[:, 0], humid.hus.sel(plev=50000).values)
    source = open_source(write(humid * 1000, tmp_path / "b.nc", hus="g kg-1"), levels_hpa=[500])
    np.testing.assert_allclose(source.read(slice(None))[:, 0], humid.hus.sel(plev=50000).values, rtol=1e-6)


@pytest.mark.parametrize("unit", ["Pa", "bogus", "m s-1", "degrees_north"])
def test_a_unit_that_is_not_one_is_named(tmp_path, unit):
    path = write(DATASET[["2m_temperature"]].rename({"2m_temperature": "t2m"}), tmp_path / "a.nc", t2m=unit)
    with pytest.raises(ValueError, match=rf"a.nc: t2m \(2m_temperature\): unit '{unit}' is .*: say .*--units t2m=UNIT"):
        open_source(path)
    for name in ("t2m", "2m_temperature"):  # the remedy works, by either name
        source = open_source(path, units={name: "K"})
        np.testing.assert_array_equal(source.read(slice(None)), frames_of(DATASET, source.channels))


def test_what_is_set_right_has_to_be_there(tmp_path):
    path = write(DATASET, tmp_path / "a.nc")
    with pytest.raises(ValueError, match=r"units: .*a.nc has no tas; it has 2m_temperature, geopotential,"):
        open_source(path, units={"tas": "degC"})
    with pytest.raises(ValueError, match="rename: .*a.nc has no tas"):
        open_source(path, rename={"tas": "2m_temperature"})


def test_unknown_variables_keep_their_unit_into_the_archive(tmp_path):
    ozone = (DATASET[["2m_temperature"]] * 1e-3).rename({"2m_temperature": "tco3"})
    write(ozone.isel(time=slice(0, 10)), tmp_path / "a.nc", tco3="DU")
    write(ozone.isel(time=slice(10, 20)), tmp_path / "b.nc", tco3="DU")
    archive = prepare_archive(open_source(tmp_path / "*.nc", variables=["tco3"]), tmp_path / "o", dtype="float32")
    assert [channel.units for channel in archive.channels] == ["DU"]
    np.testing.assert_array_equal(archive.store[:, 0].read().result(), ozone.tco3.values)
    write(ozone.isel(time=slice(10, 20)), tmp_path / "b.nc", tco3="kg m-2")
    with pytest.raises(ValueError, match="b.nc: tco3: unit 'DU' is not understood: say .*--units tco3=UNIT"):
        open_source(tmp_path / "*.nc", variables=["tco3"])


def test_unknown_variables_take_the_unit_of_the_first_file(tmp_path):
    soil = DATASET[["2m_temperature"]].rename({"2m_temperature": "stl1"})
    write(soil.isel(time=slice(0, 10)), tmp_path / "a.nc", stl1="K")
    write(soil.isel(time=slice(10, 20)) - 273.15, tmp_path / "b.nc", stl1="degC")
    source = open_source(tmp_path / "*.nc", variables=["stl1"])
    assert source.channels[0].units == "K"
    np.testing.assert_allclose(source.read(slice(None))[:, 0], soil.stl1.values, rtol=1e-6)
    assert len(source.times) == len(TIMES)
