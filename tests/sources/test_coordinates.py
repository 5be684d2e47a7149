"""Levels are known by units, standard_name and positive; every file is turned by its own coordinates.

Levels that are no pressures, and parts of the globe, are refused by name.
"""

import numpy as np
import pytest

from tests.sources.written_sources import LEVELS, frames_of, make_dataset
from weathermixer.sources.coordinates import make_orientation
from weathermixer.sources.sources import open_source

DATASET = make_dataset()
UPPER = DATASET[["temperature"]]


def equal(source, dataset=DATASET) -> None:
    np.testing.assert_array_equal(source.read(slice(None)), frames_of(dataset, source.channels))


@pytest.mark.parametrize(
    "name", ["pressure", "isobaric1", "air_pressure", "plev19", "lev", "level", "pfull", "my_levels"]
)
@pytest.mark.parametrize("unit, factor", [("Pa", 100), ("hPa", 1), ("millibars", 1), ("mb", 1), ("kPa", 0.1)])
def test_pressures_by_any_name_and_in_any_unit(tmp_path, name, unit, factor):
    dataset = UPPER.rename(level=name).assign_coords({name: (name, np.array(LEVELS) * factor, {"units": unit})})
    dataset.to_netcdf(tmp_path / "a.nc")
    source = open_source(tmp_path / "a.nc")
    assert [channel.name for channel in source.channels] == [f"temperature_{level}" for level in (1000, 850, 500, 50)]
    equal(source)


@pytest.mark.parametrize("text", ["{}hPa", "{} hPa", "{}mb", "{}"])
def test_levels_that_are_text(tmp_path, text):
    UPPER.assign_coords(level=[text.format(level) for level in LEVELS]).to_netcdf(tmp_path / "a.nc")
    equal(open_source(tmp_path / "a.nc"))


HYBRID = "atmosphere_hybrid_sigma_pressure_coordinate"


@pytest.mark.parametrize(
    "levels, attributes, message",
    [
        ([100, 137], {"long_name": "model_level_number", "units": "1"}, "are 'model_level_number', not pressures"),
        ([137.0, 992.0], {"standard_name": HYBRID, "units": "hPa"}, f"are '{HYBRID}', not pressures"),
        ([137.0, 992.0], {"long_name": "hybrid level at midpoints (1000*(A+B))", "units": "hPa"}, "hybrid level"),
        ([137.0, 992.0], {"long_name": "level", "units": "hPa", "formula_terms": "p0: P0"}, "not pressures"),
        ([2.0, 100.0], {"standard_name": "height", "units": "m"}, "are 'height', not pressures"),
        ([1000.0, 5000.0], {"standard_name": "altitude", "units": "m"}, "are 'altitude', not pressures"),
        ([300.0, 850.0], {"long_name": "potential temperature", "units": "K"}, "potential temperature"),
        ([300.0, 850.0], {"units": "K"}, "are 'K', not pressures"),
        ([300.0, 850.0], {"units": "level", "positive": "down"}, "are 'level', not pressures"),
        ([1, 2], {}, "'level', count 1, 2: if these are hPa, --units level=hPa"),
        ([50000, 85000], {}, r"are \[50000.0, 85000.0\] hPa: set right .* --units level=Pa"),
        ([500, 500], {}, r"are \[500.0, 500.0\] hPa"),
        (["low", "high"], {}, r"are \['low', 'high'\], not pressures"),
    ],
)
def test_levels_that_are_no_pressures_are_named(tmp_path, levels, attributes, message):
    dataset = UPPER.isel(level=[1, 2]).assign_coords(level=("level", levels, attributes))
    dataset.to_netcdf(tmp_path / "a.nc")
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / "a.nc", variables=["temperature"])
    DATASET[["2m_temperature"]].to_netcdf(tmp_path / "b.nc")
    source = open_source(tmp_path / "*.nc")  # whatever else there is, is read, and the account says what is not
    assert [channel.name for channel in source.channels] == ["2m_temperature"]
    assert any(line.startswith("left out temperature, ") for line in source.account)


def test_a_remedy_that_is_named_works():
    dataset = UPPER.isel(level=[0, 1]).assign_coords(level=[50000, 85000])
    assert open_source(dataset, units={"level": "Pa"}).channels[0].name == "temperature_850"
    dataset = (
        UPPER.isel(level=[0, 1]).rename(level="lev").assign_coords(lev=("lev", [500.0, 850.0], {"units": "level"}))
    )
    assert open_source(dataset, units={"lev": "hPa"}).channels[0].name == "temperature_850"


def test_levels_without_a_coordinate(tmp_path):
    UPPER.drop_vars("level").to_netcdf(tmp_path / "a.nc")
    with pytest.raises(ValueError, match=r"dimension 'level' has no coordinate: .*assign_coords\(level=\[...\]\)"):
        open_source(tmp_path / "a.nc")


def test_one_file_for_each_level(tmp_path):
    for level in LEVELS:
        DATASET[["geopotential", "temperature"]].sel(level=[level]).to_netcdf(tmp_path / f"{level}hPa.nc")
    source = open_source(tmp_path / "*hPa.nc", levels_hpa=[850, 50, 1000])
    assert [channel.level_hpa for channel in source.channels] == [850, 50, 1000] * 2
    equal(source)
    np.testing.assert_array_equal(source.read([7, 2]), frames_of(DATASET, source.channels)[[7, 2]])


def test_a_level_that_later_files_lack(tmp_path):
    UPPER.isel(time=slice(0, 12)).to_netcdf(tmp_path / "y1.nc")
    UPPER.isel(time=slice(12, 20)).sel(level=[50, 500, 1000]).to_netcdf(tmp_path / "y2.nc")
    message = (
        r"temperature on 850 hPa is absent at 8 of 20 times, first 2020-01-02T00:00, where .*y2.nc has 50, 500, 1000"
    )
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / "*.nc")
    equal(open_source(tmp_path / "*.nc", levels_hpa=[1000, 50]))
    early = open_source(tmp_path / "*.nc", period=("2019-12-30", "2020-01-01"))
    np.testing.assert_array_equal(early.read(slice(None)), frames_of(DATASET, early.channels)[:12])


def test_a_level_that_stands_beside_everything(tmp_path):
    dataset = DATASET.sel(level=500).assign(sst=DATASET["2m_temperature"] + 1)
    dataset.to_netcdf(tmp_path / "a.nc")
    source = open_source(tmp_path / "a.nc", variables=["geopotential", "2m_temperature", "sst"])
    assert [channel.name for channel in source.channels] == ["geopotential_500", "2m_temperature", "sst"]
    assert list(source.static) == ["land_sea_mask", "geopotential_at_surface"]
    np.testing.assert_array_equal(source.read(slice(None))[:, 2], dataset.sst.values)


def test_two_vertical_dimensions_in_one_file(tmp_path):
    wind = DATASET.geopotential.isel(level=[1, 2]).rename(level="isobaric3") * 1e-3
    wind = wind.assign_coords(isobaric3=("isobaric3", [50000.0, 85000.0], {"units": "Pa"}))
    dataset = UPPER.rename(level="isobaric1").assign(u=wind)
    dataset.isobaric1.attrs["units"] = "hPa"
    soil = DATASET["2m_temperature"].expand_dims(depth=[0.05, 0.3]).assign_attrs(units="K")
    dataset = dataset.assign(soil_temperature=soil)
    dataset.depth.attrs["units"] = "m"
    dataset.to_netcdf(tmp_path / "a.nc")
    source = open_source(tmp_path / "a.nc")
    assert [channel.name for channel in source.channels][4:] == ["u_component_of_wind_850", "u_component_of_wind_500"]
    np.testing.assert_array_equal(source.read(slice(None))[:, 4], wind.isel(isobaric3=1).values)
    assert any("soil_temperature, its levels, 'depth', are 'm', not pressures" in line for line in source.account)


def test_files_that_lie_in_different_directions(tmp_path):
    south = DATASET[["temperature"]].isel(latitude=slice(None, None, -1))
    west = DATASET[["geopotential"]].assign_coords(longitude=(DATASET.longitude + 180) % 360 - 180).sortby("longitude")
    turned = DATASET[["2m_temperature"]].isel(time=slice(10, 20)).isel(latitude=slice(None, None, -1))
    DATASET[["2m_temperature"]].isel(time=slice(0, 10)).to_netcdf(tmp_path / "a.nc")
    for name, dataset in (("b", south), ("c", west), ("d", turned)):
        dataset.transpose(..., "longitude", "time").to_netcdf(tmp_path / f"{name}.nc")
    equal(open_source(tmp_path / "*.nc"))


@pytest.mark.parametrize("lat, lon", [("y", "x"), ("nlat", "nlon")])
def test_coordinates_along_dimensions_of_another_name(tmp_path, lat, lon):
    dataset = DATASET.rename_dims(latitude=lat, longitude=lon).rename(latitude="lat", longitude="lon")
    dataset = dataset.reset_index(["lat", "lon"], drop=False) if "lat" in dataset.indexes else dataset
    dataset.to_netcdf(tmp_path / "a.nc")
    equal(open_source(tmp_path / "a.nc"))


def test_coordinates_known_by_their_units(tmp_path):
    dataset = DATASET.rename(latitude="north", longitude="east")
    dataset.north.attrs["units"], dataset.east.attrs["standard_name"] = "degreesN", "longitude"
    dataset.to_netcdf(tmp_path / "a.nc")
    equal(open_source(tmp_path / "a.nc"))


def test_a_gaussian_grid_and_one_without_its_last_pole():
    rows = np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(8)[0]))
    assert open_source(DATASET.assign_coords(latitude=rows)).grid.latitude[0] == pytest.approx(rows[-1], abs=1e-5)
    assert open_source(DATASET.assign_coords(latitude=90 - 22.5 * np.arange(8))).grid.shape == (8, 12)


@pytest.mark.parametrize(
    "latitude, longitude, message",
    [
        (
            np.linspace(87, 3, 8),
            None,
            "a.nc is not on a global regular grid: latitudes run from 87 to 3, in steps of 12",
        ),
        (np.linspace(60, -60, 8), None, "not on a global regular grid: latitudes run from 60 to -60"),
        ([80, 60, 40, 0, -20, -40, -60, -80], None, "latitudes 40 and 0 lie 40 degrees apart, most others 20"),
        ([80, 33, 12, 9, -5, -40, -41, -60], None, "latitudes 80 and 33 lie 47 degrees apart"),
        ([80, 60, 40, 40, 20, 0, -20, -40], None, "latitudes 40 and 40 lie 0 degrees apart"),
        (None, [3.0], "it has one longitude, 3"),
        (None, np.arange(12) * 5.0, "longitudes must go once around the globe"),
    ],
)
def test_a_part_of_the_globe_is_refused(tmp_path, latitude, longitude, message):
    dataset = DATASET[["2m_temperature"]]
    if longitude is not None:
        dataset = dataset.isel(longitude=slice(0, len(longitude))).assign_coords(longitude=longitude)
    if latitude is not None:
        dataset = dataset.assign_coords(latitude=latitude)
    dataset.to_netcdf(tmp_path / "a.nc")
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / "a.nc")


def test_the_published_crop_drops_the_south_pole_alone():
    longitude, options = np.arange(1440) * 0.25, dict(crop_south_pole=True, coarsen=1, source="era5.nc")
    orientation = make_orientation(np.linspace(-90, 90, 721), longitude, **options)
    assert orientation.grid.shape == (720, 1440) and orientation.grid.latitude[[0, -1]].tolist() == [90, -89.75]
    assert orientation.rows.tolist() == list(range(720, 0, -1))
    with pytest.raises(ValueError, match="era5.nc: its last latitude is -89.75, not the south pole, to drop"):
        make_orientation(orientation.grid.latitude, longitude, **options)


def test_one_latitude_and_no_coordinate():
    with pytest.raises(ValueError, match=r"its latitudes are \[78.75\]"):
        open_source(DATASET.isel(latitude=[0]))
    with pytest.raises(ValueError, match="no coordinate for its latitude dimension"):
        open_source(DATASET.drop_vars("latitude"))


def test_times_that_count_from_a_start(tmp_path):
    dates = DATASET.time.values
    dataset = DATASET[["2m_temperature"]].expand_dims(batch=1).assign_coords(time=dates - dates[1])
    dataset.assign_coords(datetime=(("batch", "time"), dates[None])).to_netcdf(tmp_path / "a.nc")
    source = open_source(tmp_path / "a.nc")
    np.testing.assert_array_equal(source.times, dates)
    equal(source)
