"""The source's names are translated, with levels in them and by --rename; static fields are those that do not change.

What is left out has its reason in the account.
"""

import re

import numpy as np
import pytest

from tests.sources.written_sources import frames_of, make_dataset
from weathermixer.fields.units import GRAVITY
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.sources.names import STATIC, identify, split_level
from weathermixer.sources.sources import open_source

DATASET = make_dataset()


def equal(source, dataset=DATASET) -> None:
    np.testing.assert_array_equal(source.read(slice(None)), frames_of(dataset, source.channels))


@pytest.mark.parametrize(
    "name, variable, level",
    [
        ("z500", "geopotential", 500), ("ta850", "temperature", 850), ("hus_700hPa", "specific_humidity", 700),
        ("geopotential_500", "geopotential", 500), ("temperature_2", "temperature", 2), ("zg50", "geopotential", 50),
        ("u10", "10m_u_component_of_wind", None), ("t2m", "2m_temperature", None), ("t2", "t2", None),
        ("q2", "q2", None), ("volumetric_soil_water_layer_1", "volumetric_soil_water_layer_1", None),
        ("soil_temperature_level_1", "soil_temperature_level_1", None), ("stl1", "stl1", None),
        ("total_precipitation_6hr", "total_precipitation_6hr", None), ("orog", "geopotential_at_surface", None),
    ],
)  # fmt: skip
def test_names_and_the_levels_in_them(name, variable, level):
    assert identify(name, levels=(), beside=()) == (variable, level)
    assert split_level(name)[1] == level


@pytest.mark.parametrize(
    "name, levels, beside, reason",
    [
        ("u100", (), (), "100 m or 100 hPa. --rename u100=100m_u_component_of_wind or"),
        ("t", (), (), "no pressure level: name it if there is one, --rename t=temperature_500"),
        ("t2m", (500.0, 850.0), (), "it has pressure levels, and 2m_temperature has none"),
        ("z500", (500.0, 850.0), (), "its name says 500 hPa"),
        ("z500", (), (850.0,), "its name says 500 hPa"),
    ],
)
def test_names_that_contradict_their_levels(name, levels, beside, reason):
    with pytest.raises(ValueError, match=reason):
        identify(name, levels=levels, beside=beside)


def test_a_name_for_each_level(tmp_path):
    names = {"z500": ("geopotential", 500), "geopotential_850": ("geopotential", 850), "t50": ("temperature", 50)}
    single = {name: DATASET[variable].sel(level=level, drop=True) for name, (variable, level) in names.items()}
    DATASET[["2m_temperature"]].assign(single).to_netcdf(tmp_path / "a.nc")
    source = open_source(tmp_path / "a.nc")
    assert [channel.name for channel in source.channels] == [
        "2m_temperature", "geopotential_850", "geopotential_500", "temperature_50",
    ]  # fmt: skip
    equal(source)
    equal(open_source(tmp_path / "a.nc", variables=["z500", "temperature_50"]))
    equal(open_source(tmp_path / "a.nc", variables=["geopotential"], levels_hpa=[500]))


MERRA = {"H": "geopotential", "T": "temperature", "T2M": "2m_temperature", "PHIS": "geopotential_at_surface"}
CESM = {"Z3": "geopotential", "T": "temperature", "TREFHT": "2m_temperature", "PHIS": "geopotential_at_surface"}
NCEP = {"hgt": "geopotential", "air": "temperature", "t2": "2m_temperature", "lsm": "land_sea_mask"}
CMIP6 = {"zg": "geopotential", "ta": "temperature", "tas": "2m_temperature", "sftlf": "land_sea_mask"}


@pytest.mark.parametrize(
    "names, level, units, renamed",
    [
        (MERRA, "lev", {"lev": "hPa", "H": "m", "T": "K", "T2M": "K", "PHIS": "m+2 s-2"}, True),
        (CESM, "lev_p", {"lev_p": "hPa", "Z3": "m", "T": "K", "TREFHT": "K", "PHIS": "m2/s2"}, True),
        (NCEP, "level", {"level": "millibar", "hgt": "m", "air": "degK", "t2": "degK", "lsm": "none"}, True),
        (CMIP6, "plev", {"plev": "Pa", "zg": "m", "ta": "K", "tas": "K", "sftlf": "%"}, False),
    ],
)
def test_the_names_of_merra_2_cesm_ncep_and_cmip6(tmp_path, names, level, units, renamed):
    static = next(name for name in names.values() if name in STATIC)
    dataset = DATASET.drop_vars(set(STATIC) - {static}, errors="ignore").rename(
        latitude="lat", longitude="lon", level=level
    )
    dataset = dataset.rename({name: given for given, name in names.items()})
    for given, unit in units.items():
        attributes = dataset[given].attrs | {"units": unit}
        factor = {"m": 1 / GRAVITY, "%": 100.0, "Pa": 100.0}.get(unit, 1.0)
        dataset[given] = (dataset[given].dims, (dataset[given].values * factor).astype(np.float32), attributes)
    dataset.to_netcdf(tmp_path / "a.nc")
    if renamed:
        with pytest.raises(ValueError, match="holds none of the variables that are known; it has"):
            open_source(dataset)
    source = open_source(tmp_path / "a.nc", rename=names if renamed else None)
    assert [channel.name for channel in source.channels][::4] == ["2m_temperature", "geopotential_50", "temperature_50"]
    np.testing.assert_allclose(source.read(slice(None)), frames_of(DATASET, source.channels), rtol=1e-5)
    np.testing.assert_allclose(source.static[static], DATASET[static].values, rtol=1e-5)


def test_a_level_named_by_rename(tmp_path):
    DATASET[["temperature"]].sel(level=850, drop=True).rename(temperature="t").to_netcdf(tmp_path / "a.nc")
    with pytest.raises(ValueError, match="left out t, no pressure level: name it if there is one, --rename t=temper"):
        open_source(tmp_path / "a.nc")
    equal(open_source(tmp_path / "a.nc", rename={"t": "temperature_850"}))


def test_names_that_end_in_a_number(tmp_path):
    names = ["volumetric_soil_water_layer_1", "volumetric_soil_water_layer_2"]
    soil = {name: DATASET["2m_temperature"] / (500 + n) for n, name in enumerate(names)}
    DATASET[["temperature"]].rename(temperature="ozone").assign(soil).to_netcdf(tmp_path / "a.nc")
    source = open_source(tmp_path / "a.nc", variables=[*names, "ozone_850"])
    assert [(c.variable, c.level_hpa) for c in source.channels] == [(n, None) for n in names] + [("ozone", 850)]
    archive = prepare_archive(source, tmp_path / "o", dtype="float32")
    assert archive.channels == source.channels
    np.testing.assert_array_equal(archive.store[:, 1].read().result(), soil[names[1]].values)


def test_geopotential_without_a_level_is_no_orography(tmp_path):
    DATASET[["geopotential"]].sel(level=500, drop=True).rename(geopotential="z").to_netcdf(tmp_path / "a500.nc")
    DATASET[["2m_temperature"]].to_netcdf(tmp_path / "b.nc")
    reason = "left out z, changes with time, geopotential_at_surface does not: name its level"
    source = open_source(tmp_path / "*.nc")
    assert source.static == {} and any(line.startswith(reason) for line in source.account)
    constants = DATASET[["geopotential_at_surface", "land_sea_mask"]]
    constants.rename(geopotential_at_surface="z").to_netcdf(tmp_path / "zz_constants.nc")
    source = open_source(tmp_path / "*.nc")
    assert [channel.name for channel in source.channels] == ["2m_temperature"]
    for name, field in source.static.items():
        np.testing.assert_array_equal(field, DATASET[name].values)
    assert len(source.static) == 2 and any(line.startswith(reason) for line in source.account)
    one_time = DATASET[["geopotential"]].sel(level=500, drop=True).isel(time=0).rename(geopotential="z")
    one_time.assign(tas=DATASET["2m_temperature"].isel(time=0)).to_netcdf(tmp_path / "one.nc")
    source = open_source(tmp_path / "one.nc")
    assert source.static == {} and any("nowhere below" in line for line in source.account)


def test_static_fields_that_are_repeated_in_time_or_change(tmp_path):
    repeated = DATASET["land_sea_mask"].expand_dims(time=DATASET.time)
    dataset = DATASET[["2m_temperature"]].assign(lsm=repeated)
    (
        dataset.isel(time=slice(0, 10)).to_netcdf(tmp_path / "a.nc"),
        dataset.isel(time=slice(10, 20)).to_netcdf(tmp_path / "b.nc"),
    )
    source = open_source(tmp_path / "*.nc")
    np.testing.assert_array_equal(source.static["land_sea_mask"], DATASET["land_sea_mask"].values)
    np.testing.assert_array_equal(
        open_source(tmp_path / "*.nc", static=["lsm"]).static["lsm"], DATASET["land_sea_mask"]
    )
    later = dataset.assign_coords(time=dataset.time + np.timedelta64(30, "D"))
    later.assign(lsm=1 - later.lsm).to_netcdf(tmp_path / "c.nc")
    reason = "left out lsm, changes with time, l.* does not"
    with pytest.raises(ValueError, match=f"no static field 'lsm'; {reason}"):
        open_source(tmp_path / "*.nc", static=["lsm"])
    source = open_source(tmp_path / "*.nc")
    assert source.static == {} and any(re.match(reason, line) for line in source.account)


def test_a_static_field_on_another_grid_or_out_of_range(tmp_path):
    DATASET[["2m_temperature"]].to_netcdf(tmp_path / "a.nc")
    make_dataset(lat=16, lon=24)[["land_sea_mask"]].to_netcdf(tmp_path / "b.nc")
    source = open_source(tmp_path / "*.nc")
    assert source.static == {}
    assert any("left out land_sea_mask, " in line and "(16 values)" in line for line in source.account)
    with pytest.raises(ValueError, match="no static field 'land_sea_mask'; left out .* is on another grid than"):
        open_source(tmp_path / "*.nc", static=["land_sea_mask"])
    (DATASET[["land_sea_mask"]] * 100).to_netcdf(tmp_path / "b.nc")
    with pytest.raises(ValueError, match="out of the range of -0.1 to 1.1: say its unit, --units land_sea_mask=UNIT"):
        open_source(tmp_path / "*.nc")
    percent = open_source(tmp_path / "*.nc", units={"land_sea_mask": "%"})
    np.testing.assert_allclose(percent.static["land_sea_mask"], DATASET["land_sea_mask"].values, rtol=1e-6)


def test_what_is_left_out_is_told(tmp_path):
    dataset = DATASET.assign(
        tcc=DATASET["2m_temperature"], gh=DATASET.geopotential, crs=0, hyam=("level", np.arange(4))
    )
    dataset = dataset.assign(members=DATASET["2m_temperature"].expand_dims(number=3))
    (
        dataset.isel(time=slice(0, 10)).to_netcdf(tmp_path / "a.nc"),
        dataset.isel(time=slice(10, 20)).to_netcdf(tmp_path / "b.nc"),
    )
    account = open_source(tmp_path / "*.nc").account
    for told in (
        "left out tcc, not known by name (--variables, --rename):",
        "left out gh, geopotential is taken from geopotential:",
        "left out crs, not on latitude and longitude but on nothing:",
        "left out hyam, not on latitude and longitude but on level:",
        "left out members, more dimensions, {'number': 3}: select one entry, number=VALUE:",
    ):
        assert [line.endswith("a.nc and 1 more") for line in account if line.startswith(told)] == [True], account
    asked = open_source(tmp_path / "*.nc", variables=["tcc"]).account
    assert not any("tcc" in line for line in asked)
