"""Sources in every order and format give the same frames; what is absent or does not fit is named."""

import sys

import numpy as np
import pytest

from tests.servers import serve
from tests.sources.written_sources import LEVELS, TIMES, frames_of, make_dataset, write_zarr
from weathermixer.fields.units import GRAVITY
from weathermixer.sources.sources import open_source


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    "dims", [("time", "level", "latitude", "longitude"), ("longitude", "level", "latitude", "time")]
)
@pytest.mark.parametrize("ascending, west_first", [(False, False), (True, True)])
def test_any_order_reads_the_same(tmp_path, zarr_format, dims, ascending, west_first):
    dataset = make_dataset()
    turned = dataset.transpose(*dims).isel(level=[2, 0, 3, 1])
    if ascending:
        turned = turned.isel(latitude=slice(None, None, -1))
    if west_first:
        turned = turned.assign_coords(longitude=(turned.longitude + 180) % 360 - 180).sortby("longitude")
    source = open_source(
        write_zarr(turned, tmp_path / "source.zarr", zarr_format=zarr_format), levels_hpa=[500, 50, 850]
    )
    upper = [f"{name}_{level}" for name in ("geopotential", "temperature") for level in (500, 50, 850)]
    assert [channel.name for channel in source.channels] == ["2m_temperature", *upper]
    np.testing.assert_array_equal(source.times, TIMES)
    assert len(source.missing_times) == 0
    assert source.step_hours == 6
    np.testing.assert_allclose(source.grid.latitude, dataset.latitude.values)
    np.testing.assert_allclose(source.grid.longitude, dataset.longitude.values)
    frames = source.read(slice(None))
    assert frames.dtype == np.float32
    np.testing.assert_array_equal(frames, frames_of(dataset, source.channels))
    for times in ([7, 3, 4], [9, 7, 5], [2, 2]):
        np.testing.assert_array_equal(source.read(times), frames[times])
    np.testing.assert_array_equal(source.read(slice(2, 5), variables=["temperature"]), frames[2:5, 4:])
    assert source.read(slice(0, 0)).shape == (0, 7, 8, 12)
    assert list(source.static) == ["land_sea_mask", "geopotential_at_surface"]
    np.testing.assert_array_equal(source.static["land_sea_mask"], dataset.land_sea_mask.values)


def test_levels_come_from_the_ground_up_by_default():
    source = open_source(make_dataset(), variables=["temperature"])
    assert [channel.level_hpa for channel in source.channels] == sorted(LEVELS, reverse=True)


def test_channels_can_be_named_with_their_level():
    source = open_source(make_dataset(), variables=["temperature_850", "2m_temperature", "geopotential_500"])
    assert [channel.name for channel in source.channels] == ["temperature_850", "2m_temperature", "geopotential_500"]


@pytest.mark.parametrize(
    ("period", "ends"),
    [
        (("2020", "2020"), ("2020-01-01T00", "2020-01-03T18")),  # a year ends with its last day, as in a config
        (("2019-12", "2019"), ("2019-12-30T00", "2019-12-31T18")),
        (("2020-01-01T06", "2020-01-02"), ("2020-01-01T06", "2020-01-02T18")),
        (("2020-01-01", "2020-01-02T06"), ("2020-01-01T00", "2020-01-02T06")),
    ],
)
def test_a_period_ends_with_its_last_year_month_day_or_hour(period, ends):
    times = open_source(make_dataset(), period=period).times
    np.testing.assert_array_equal(times[[0, -1]], np.array(ends, "datetime64[ns]"))


def test_step_period_and_gaps():
    times = np.datetime64("2020-01-01T00", "ns") + np.arange(72) * np.timedelta64(1, "h")
    dataset = make_dataset(times=times).drop_isel(time=[18])
    source = open_source(dataset, period=("2020-01-01", "2020-01-02"))
    assert [str(time) for time in source.times.astype("datetime64[h]")] == [
        "2020-01-01T00", "2020-01-01T06", "2020-01-01T12",
        "2020-01-02T00", "2020-01-02T06", "2020-01-02T12", "2020-01-02T18",
    ]  # fmt: skip
    assert [str(time) for time in source.missing_times.astype("datetime64[h]")] == ["2020-01-01T18"]
    np.testing.assert_array_equal(source.read([3]), frames_of(dataset.isel(time=[23]), source.channels))
    assert len(open_source(dataset, step_hours=1).times) == 71
    twelve = open_source(dataset.isel(time=slice(0, None, 12)))
    assert twelve.step_hours == 12
    left_out = open_source(dataset, exclude=["2020-01-03T00"])
    assert np.datetime64("2020-01-03T00") in left_out.missing_times
    phase = open_source(dataset.isel(time=slice(3, 18, 6)))
    assert str(phase.times[0].astype("datetime64[h]")) == "2020-01-01T03"


def test_times_that_one_variable_lacks_are_missing(tmp_path):
    dataset = make_dataset()
    dataset[["temperature"]].to_netcdf(tmp_path / "a_temperature.nc")
    dataset[["geopotential"]].isel(time=slice(0, 8)).to_netcdf(tmp_path / "b_first.nc")
    dataset[["geopotential"]].isel(time=slice(9, 20)).to_netcdf(tmp_path / "c_second.nc")
    source = open_source(tmp_path / "*.nc")
    assert list(source.missing_times) == [TIMES[8]]
    kept = dataset.drop_isel(time=[8])
    np.testing.assert_array_equal(source.read(slice(None)), frames_of(kept, source.channels))


def test_crop_and_coarsen():
    dataset = make_dataset(lat=9, poles=True)
    cropped = open_source(dataset, crop_south_pole=True)
    assert cropped.grid.shape == (8, 12)
    full = frames_of(dataset, cropped.channels)
    np.testing.assert_array_equal(cropped.read(slice(None)), full[:, :, :-1])
    coarse = open_source(dataset, crop_south_pole=True, coarsen=2)
    assert coarse.grid.shape == (4, 6)
    weights = cropped.orientation.weights[:2]
    block = full[:, :, :2, 2:4].mean(axis=-1).astype(np.float64) @ weights / weights.sum()
    np.testing.assert_allclose(coarse.read(slice(None))[:, :, 0, 1], block, rtol=1e-6)
    np.testing.assert_allclose(coarse.grid.longitude[:2], [15, 75])
    constant = open_source(dataset * 0 + 5, crop_south_pole=True, coarsen=4, static=[])
    np.testing.assert_allclose(constant.read(slice(0, 1)), 5, rtol=1e-6)


def test_other_names_and_units(tmp_path):
    dataset = make_dataset()
    other = dataset.rename(
        {"time": "valid_time", "level": "plev", "latitude": "lat", "longitude": "lon", "geopotential": "gh",
         "temperature": "t", "2m_temperature": "t2m", "land_sea_mask": "lsm", "geopotential_at_surface": "orog"}
    )  # fmt: skip
    other = other.assign_coords(plev=("plev", other.plev.values * 100.0, {"units": "Pa"}))
    other["gh"] = (other.gh / GRAVITY).assign_attrs(units="gpm")
    other["orog"] = (other.orog / GRAVITY).assign_attrs(units="m")
    other["t2m"] = (other.t2m - 273.15).assign_attrs(units="degC")
    other.to_netcdf(tmp_path / "era5.nc")
    source = open_source(tmp_path / "era5.nc", levels_hpa=[850])
    assert [channel.name for channel in source.channels] == ["2m_temperature", "geopotential_850", "temperature_850"]
    np.testing.assert_allclose(source.read(slice(None)), frames_of(dataset, source.channels), rtol=1e-6)
    np.testing.assert_allclose(
        source.static["geopotential_at_surface"], dataset.geopotential_at_surface.values, rtol=1e-6
    )


@pytest.mark.parametrize("how, said", [("area: time: mean", True), ("time: point", False), ("time: maximum", True)])
def test_what_is_no_value_at_its_time_is_told(how, said):
    dataset = make_dataset()
    dataset["2m_temperature"].attrs["cell_methods"] = how
    word = how.split()[-1]
    line = f"2m_temperature is given as 'time: {word}', taken as the value at its time: dataset"
    assert (line in open_source(dataset).account) == said


def test_cyclic_column_is_dropped():
    dataset = make_dataset()
    cyclic = dataset.isel(longitude=[*range(12), 0])
    cyclic = cyclic.assign_coords(longitude=np.arange(13) * 30.0)
    source = open_source(cyclic)
    assert "longitudes that are there twice: 1, the first of each is taken: dataset" in source.account
    np.testing.assert_array_equal(source.read(slice(None)), frames_of(dataset, source.channels))


def test_one_time_without_a_dimension():
    source = open_source(make_dataset().isel(time=4))
    np.testing.assert_array_equal(source.times, TIMES[4:5])
    assert source.read(slice(None)).shape == (1, 9, 8, 12)
    assert list(source.static) == ["land_sea_mask", "geopotential_at_surface"]


def test_time_chunk_counts_the_times_that_are_used(tmp_path):
    path = write_zarr(make_dataset(), tmp_path / "source.zarr", time_chunk=8)
    assert open_source(path).time_chunk == 8
    assert open_source(path, step_hours=24).time_chunk == 2


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda d: d, {"variables": ["vertical_velocity"]}, "no variable 'vertical_velocity'; it has .*geopotential"),
        (lambda d: d, {"levels_hpa": [500, 700]}, r"no level 700 hPa of geopotential; it has \[1000.0, 850.0"),
        (lambda d: d, {"variables": ["2m_temperature_850"]}, "2m_temperature in dataset has no levels, 850"),
        (lambda d: d[["2m_temperature"]], {"levels_hpa": [500]}, r"levels_hpa=\[500\] are of none of 2m_temperature"),
        (lambda d: d, {"variables": ["temperature_500"], "levels_hpa": [850]}, "are of none of temperature_500: leave"),
        (lambda d: d, {"variables": ["temperature", "temperature_500"]}, "named twice: .*temperature_500"),
        (lambda d: d, {"static": ["soil_type"]}, "no static field 'soil_type'"),
        (lambda d: d, {"period": ("1999-01-01", "1999-12-31")}, "no times .*found: 20, 2019.* not from 1999"),
        (lambda d: d, {"step_hours": 5}, "step_hours=5: no two times of dataset .* steps of 6 h"),
        (lambda d: d, {"exclude": ["2001-01-01T00"]}, "exclude, 2001-01-01T00, are not in dataset; it has 20"),
        (lambda d: d, {"crop_south_pole": True}, "not the south pole"),
        (lambda d: d, {"coarsen": 3}, "8 x 12 cells do not divide into blocks of 3 x 3"),
        (lambda d: d.isel(longitude=slice(0, 6)), {}, "not on a global regular grid: longitudes must go once around"),
        (lambda d: d.isel(longitude=[0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]), {}, "must go once .* in steps of 30 to 60"),
        (lambda d: d.rename(latitude="row"), {}, "no latitude dimension"),
        (lambda d: d.rename({"latitude": "values"}).isel(longitude=0), {}, "no latitude|not on a regular"),
        (lambda d: d.expand_dims(number=3), {}, "more dimensions, {'number': 3}: select one entry, number=VALUE"),
        (lambda d: d[["land_sea_mask"]], {}, "holds none of the variables that are known"),
        (lambda d: d.assign(land_sea_mask=d.land_sea_mask / 0), {}, "static field land_sea_mask .* 96 values"),
        (
            lambda d: d.assign({"2m_temperature": d["2m_temperature"].assign_attrs(units="Pa")}),
            {},
            "unit 'Pa' is of another quantity than 'K': .*--units 2m_temperature=UNIT",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(change, options, message):
    with np.errstate(divide="ignore"), pytest.raises(ValueError, match=message):
        open_source(change(make_dataset()), **options)


def test_selecting_a_member():
    dataset = make_dataset().drop_vars(["land_sea_mask", "geopotential_at_surface"])
    members = (dataset * (1 + dataset.time.dt.hour * 0)).expand_dims(number=[4, 7]).copy(deep=True)
    source = open_source(members, select={"number": 7})
    np.testing.assert_array_equal(source.read(slice(None)), frames_of(dataset, source.channels))
    with pytest.raises(ValueError, match="number=5: there is no such number; it has 4, 7"):
        open_source(members, select={"number": 5})


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(ValueError, match="no file at .*nothing.zarr"):
        open_source(tmp_path / "nothing.zarr")
    with pytest.raises(ValueError, match="no file at"):
        open_source(tmp_path / "nothing*.nc")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(ValueError, match="empty.zarr is an empty folder"):
        open_source(tmp_path / "empty.zarr")


def test_a_source_on_a_web_server(tmp_path):
    pytest.importorskip("aiohttp", reason="no aiohttp: pip install 'weathermixer[cloud]'")
    dataset = make_dataset()
    write_zarr(dataset, tmp_path / "source.zarr", zarr_format=2)
    with serve(tmp_path) as (url, _):
        source = open_source(f"{url}/source.zarr")
        np.testing.assert_array_equal(source.read(slice(None)), frames_of(dataset, source.channels))
        with pytest.raises(ValueError, match="nothing.zarr cannot be opened as a Zarr store"):
            open_source(f"{url}/nothing.zarr")


def test_files_on_a_web_server(tmp_path, monkeypatch, capsys):
    pytest.importorskip("aiohttp", reason="no aiohttp: pip install 'weathermixer[cloud]'")
    monkeypatch.setenv("WEATHERMIXER_CACHE", str(tmp_path / "cache"))
    dataset = make_dataset(levels=(500,))
    dataset.isel(time=slice(0, 10)).to_netcdf(tmp_path / "a.nc")
    dataset.isel(time=slice(10, 20)).to_netcdf(tmp_path / "b.nc")
    (tmp_path / "c.nc").write_bytes((tmp_path / "a.nc").read_bytes()[:-4])
    with serve(tmp_path) as (url, asked):
        for _ in range(2):  # the second time from the cache
            source = open_source([f"{url}/a.nc", f"{url}/b.nc"])
            np.testing.assert_array_equal(source.read(slice(None)), frames_of(dataset, source.channels))
        assert sorted(path for path in asked if "nc" in path) == ["/a.nc", "/b.nc"]
        assert f"read from a copy in the cache, fetched once: {url}/a.nc and 1 more" in source.account
        assert f"fetch: {url}/a.nc, unless {tmp_path}/cache/remote has it" in capsys.readouterr().err
        with pytest.raises(ValueError, match=f"{url}/nothing.nc cannot be fetched: FileNotFoundError"):
            open_source(f"{url}/nothing.nc")
        with pytest.raises(ValueError, match=f"{url}/c.nc cannot be opened as netCDF: it is cut off or damaged"):
            open_source(f"{url}/c.nc")
    monkeypatch.setitem(sys.modules, "fsspec", None)  # as where it is not installed
    with pytest.raises(ValueError, match=r"http://.*a.nc needs fsspec .*pip install 'weathermixer\[cloud\]'"):
        open_source(f"{url}/a.nc")


def test_files_on_different_grids(tmp_path):
    make_dataset().isel(time=slice(0, 5)).to_netcdf(tmp_path / "a.nc")
    make_dataset(lat=10).isel(time=slice(5, 9)).to_netcdf(tmp_path / "b.nc")
    with pytest.raises(ValueError, match="b.nc is on another grid than .*a.nc: 2m_temperature has latitudes 81.0 "):
        open_source(tmp_path / "*.nc")


def test_a_corrupt_chunk_is_named(tmp_path):
    path = write_zarr(make_dataset(), tmp_path / "source.zarr", time_chunk=3)
    (chunk,) = (path / "temperature" / "c" / "2").rglob("0/0/0")
    chunk.write_bytes(b"not a chunk of anything")
    source = open_source(path)
    source.read(slice(0, 6))
    with pytest.raises(ValueError, match="temperature at 2019-12-31T12.* cannot be read"):
        source.read(slice(4, 9))
