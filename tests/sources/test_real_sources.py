"""Archives from real files of each kind, and clear refusals of what is on no regular grid."""

import os
import pathlib

import numpy as np
import pytest
import xarray as xr

from tests.sources.written_sources import write_netcdf_parts
from weathermixer.archive.verify import verify_archive
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.sources.sources import open_source

REAL = os.environ.get("WEATHERMIXER_REAL_DATA", "")
pytestmark = pytest.mark.skipif(not REAL, reason="WEATHERMIXER_REAL_DATA, the folder of real fields, is not set")
ROOT = pathlib.Path(REAL)
needs_grib = pytest.mark.skipif(
    pytest.importorskip("importlib.util").find_spec("cfgrib") is None,
    reason="no cfgrib: pip install 'weathermixer[grib]'",
)


def physical(archive) -> np.ndarray:
    stored = archive.store.read().result().astype(np.float64)
    return stored * archive.scale[:, None, None] + archive.offset[:, None, None]


def test_gfs_zarr_whose_latitudes_ascend(tmp_path):
    path = ROOT / "gfs_10mwind_6h_2026_dev_64x32.zarr"
    archive = prepare_archive(open_source(path), tmp_path / "a", domain=8)
    assert archive.grid.latitude[0] == pytest.approx(87.1875)
    assert len(archive.times) == 306
    missing = archive.attributes["missing_times"]
    assert {"2026-04-08T00", "2026-07-06T12", "2026-07-09T06", "2026-08-06T12", "2026-06-01T00"} <= set(missing)
    with xr.open_zarr(path, chunks=None) as dataset:
        exact = dataset["10m_v_component_of_wind"].values[:, ::-1].astype(np.float64)
    values = physical(archive)[:, 1]
    assert np.abs(values - exact).max() < 3e-3 * exact.std()
    pairs = np.diff(archive.times) == np.timedelta64(6, "h")
    assert pairs.sum() == 305 - 5  # the pause, and four single times
    tendency = np.diff(exact, axis=0)[pairs].std()
    assert archive.statistics.tendency_std[1] == pytest.approx(tendency, rel=1e-6)
    assert verify_archive(tmp_path / "a") == []


def test_icon_zarr_with_every_kind_of_variable(tmp_path):
    source = open_source(
        ROOT / "icon_fc_2022040100_12h_1deg.zarr",
        variables=["mean_sea_level_pressure", "geopotential", "specific_humidity", "total_precipitation_since_start"],
        levels_hpa=[500, 250],
        crop_south_pole=True,
        coarsen=4,
        exclude=["2022-04-01T00"],
    )
    archive = prepare_archive(source, tmp_path / "a", domain=5, tensor=2)
    assert archive.grid.shape == (45, 90)
    assert archive.step_hours == archive.attributes["tendency_hours"] == 12
    assert list(archive.static) == ["geopotential_at_surface"]
    assert 4e4 < archive.static["geopotential_at_surface"].max() < 7e4
    names = [channel.name for channel in archive.channels]
    assert names[-1] == "total_precipitation_since_start"
    assert archive.statistics.mean[names.index("geopotential_500")] == pytest.approx(5.41e4, rel=0.01)
    # storage costs little of what changes in a step, on every channel
    assert np.all(np.array(archive.attributes["rounding"]["float16"]) < 5e-3 * archive.statistics.tendency_std)


def test_precipitation_of_the_first_time_is_constant(tmp_path):
    source = open_source(
        ROOT / "icon_fc_2022040100_12h_1deg.zarr", variables=["total_precipitation_since_start"], coarsen=1
    )
    with pytest.raises(
        ValueError, match="total_precipitation_since_start at 2022-04-01T00:00: constant, every value is 0.0"
    ):
        prepare_archive(source, tmp_path / "a")


def test_era5_netcdf_in_another_order(tmp_path):
    path = ROOT / "io" / "era5_tl31_19590102T00.nc"
    source = open_source(path, variables=["geopotential", "specific_humidity"], levels_hpa=[500, 50, 1])
    archive = prepare_archive(source, tmp_path / "a", dtype="float32")
    with xr.open_dataset(path) as dataset:
        expected = dataset.specific_humidity.sel(level=50).transpose("latitude", "longitude").values[::-1]
    index = archive.channel_indices(["specific_humidity_50"])[0]
    np.testing.assert_array_equal(archive.store[0, index].read().result(), expected)
    assert archive.grid.latitude[0] == pytest.approx(85.76, abs=0.01)


def test_netcdf_files_become_one_archive(tmp_path):
    write_netcdf_parts(ROOT, tmp_path)
    archive = prepare_archive(open_source(tmp_path / "part*.nc"), tmp_path / "a")
    assert len(archive.times) == 4
    assert np.all(archive.statistics.tendency_std > 0)


@needs_grib
def test_the_same_fields_as_netcdf_and_grib(tmp_path):
    grib, netcdf = (open_source(ROOT / "io" / f"ek_tuv_pl.{suffix}") for suffix in ("grib", "nc"))
    assert grib.channels == netcdf.channels
    np.testing.assert_array_equal(grib.times, netcdf.times)
    a, b = grib.read(slice(None)), netcdf.read(slice(None))
    step = (b.max(axis=(0, 2, 3)) - b.min(axis=(0, 2, 3)))[:, None, None] * 1e-2
    assert np.all(np.abs(a - b) <= step)
    assert prepare_archive(grib, tmp_path / "a").store.shape == (1, 18, 7, 12)


@needs_grib
def test_grib_with_members(tmp_path):
    path = ROOT / "io" / "cfgrib_era5-levels-members.grib"
    with pytest.raises(ValueError, match="'number': 10}: select one entry, number=VALUE"):
        open_source(path)
    archive = prepare_archive(open_source(path, select={"number": 3}), tmp_path / "a", tensor=2)
    assert [channel.name for channel in archive.channels] == [
        "geopotential_850", "geopotential_500", "temperature_850", "temperature_500",
    ]  # fmt: skip
    assert archive.step_hours == 12
    assert len(archive.times) == 4
    assert np.all(archive.statistics.tendency_std > 0)
    assert not list(path.parent.glob("*.idx"))


@needs_grib
def test_a_complete_gfs_file(tmp_path):
    source = open_source(
        ROOT / "io" / "gfs.t12z.pgrbf120.2p5deg.grib2",
        variables=["mean_sea_level_pressure", "2m_temperature", "10m_u_component_of_wind", "geopotential"],
        levels_hpa=[500],
        crop_south_pole=True,
    )
    # the time is what the forecast is about, 120 h after its start
    assert str(source.times[0].astype("datetime64[h]")) == "2011-01-15T12"
    archive = prepare_archive(source, tmp_path / "a", domain=8)
    mean = dict(zip([channel.name for channel in archive.channels], archive.statistics.mean))
    assert mean["geopotential_500"] == pytest.approx(5.4e4, rel=0.02)
    assert mean["mean_sea_level_pressure"] == pytest.approx(1.01e5, rel=0.01)
    assert list(archive.static) == ["land_sea_mask", "geopotential_at_surface"]


@needs_grib
def test_grib_from_south_to_north(tmp_path):
    source = open_source(ROOT / "io" / "cfgrib_scanning_mode_64.grib", variables=["skt"])
    assert source.grid.latitude[0] > source.grid.latitude[-1]
    values = prepare_archive(source, tmp_path / "a", dtype="float32").store[0, 0].read().result()
    # skin temperature: Antarctica, in the last rows, is far colder than the equator
    assert values[-2].mean() < values[len(values) // 2].mean() - 20


@needs_grib
@pytest.mark.parametrize(
    "name, reason",
    [("cfgrib_reduced_gg.grib", "reduced_gg"), ("cfgrib_spherical_harmonics.grib", "sh")],
)
def test_other_grids_are_refused(name, reason):
    with pytest.raises(
        ValueError, match=f"{name} is on GRIB's {reason}: interpolate it to a regular latitude-longitude grid"
    ):
        open_source(ROOT / "io" / name)


def test_a_land_sea_mask_that_is_half_a_degree_off():
    with pytest.raises(ValueError, match="holds none of"):
        open_source(ROOT / "static" / "landsea_1deg.nc")
