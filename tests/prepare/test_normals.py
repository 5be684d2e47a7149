"""The climatology in an archive is WeatherBench 2's: years stacked, day 366 filled, days wrapped, a weighted window."""

import numpy as np
import pytest
import xarray as xr

from tests.sources.written_sources import frames_of, make_dataset
from weathermixer.archive.verify import verify_archive
from weathermixer.prepare import normals, writer
from weathermixer.prepare.normals import choose_terms, smooth
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.sources.sources import Source, open_source

YEARS = (2019, 2020)  # of 365 and 366 days
MADE = dict(climatology=True, times_per_shard=400)


@pytest.fixture(scope="module")
def dataset() -> xr.Dataset:
    start, stop = np.datetime64(f"{YEARS[0]}-01-01T00", "ns"), np.datetime64(f"{YEARS[-1] + 1}-01-01T00", "ns")
    times = np.arange(start, stop, np.timedelta64(12, "h"))
    return make_dataset(times=times, lat=4, lon=6, levels=(500, 850)).drop_vars("temperature")


@pytest.fixture(scope="module")
def daily(dataset) -> xr.Dataset:
    return dataset[["2m_temperature"]].isel(time=slice(None, None, 2))


def weatherbench(source: Source, frames: np.ndarray) -> np.ndarray:
    """[hour, day, channel, lat, lon], step by step as weatherbench2.utils.compute_rolling_stat, for complete years."""
    half = np.linspace(0, 1, 31)
    weights = np.concatenate([half, np.linspace(1, 0, 31)[1:]])
    result = []
    for hour in (0, 12):
        stacked = np.full((len(YEARS), 366, *frames.shape[1:]), np.nan)
        for time, frame in zip(source.times, frames):
            year, date = time.astype("datetime64[Y]"), time.astype("datetime64[D]")
            if (time - date) == np.timedelta64(hour, "h"):
                stacked[int(str(year)) - YEARS[0], int((date - year.astype("datetime64[D]")).astype(int))] = frame
        stacked = np.where(np.isnan(stacked), stacked[:, 364:365], stacked)
        padded = np.concatenate([stacked[:, -30:], stacked, stacked[:, :30]], axis=1)
        windows = np.lib.stride_tricks.sliding_window_view(padded, 61, axis=1)
        result.append((windows * weights).sum(axis=(0, -1)) / (len(YEARS) * weights.sum()))
    return np.stack(result)


@pytest.mark.parametrize(
    "domain, tensor, dtype", [(1, 1, "float32"), pytest.param(2, 3, "int16", marks=pytest.mark.slow)]
)
def test_it_is_weatherbenchs(tmp_path, dataset, domain, tensor, dtype):
    source = open_source(dataset, step_hours=12)
    archive = prepare_archive(source, tmp_path / "a", domain=domain, tensor=tensor, dtype=dtype, **MADE)
    frames = frames_of(dataset, source.channels).astype(np.float64)
    expected = weatherbench(source, frames)
    with xr.open_zarr(tmp_path / "a", group="climatology", chunks=None) as climatology:
        assert climatology.geopotential.dims == ("hour", "dayofyear", "level", "latitude", "longitude")
        assert climatology["2m_temperature"].dims == ("hour", "dayofyear", "latitude", "longitude")
        assert climatology.hour.values.tolist() == [0, 12]
        assert climatology.dayofyear.values.tolist() == list(range(1, 367))
        assert climatology.level.values.tolist() == [500, 850]
        for index, channel in enumerate(archive.channels):
            field = climatology[channel.variable]
            field = field if channel.level_hpa is None else field.sel(level=channel.level_hpa)
            scale = frames[:, index].std()
            np.testing.assert_allclose(
                field.values, expected[:, :, index], atol=2e-4 * scale if dtype == "int16" else 0, rtol=2e-7
            )


def test_only_times_that_count(tmp_path, daily):
    prepare_archive(open_source(daily), tmp_path / "one", **MADE, statistics_period=("2019", "2019"))
    prepare_archive(open_source(daily, period=("2019", "2019")), tmp_path / "fewer", **MADE)
    fields = []
    for name in ("one", "fewer"):
        with xr.open_zarr(tmp_path / name, group="climatology", chunks=None) as climatology:
            fields.append(climatology["2m_temperature"].values)
    np.testing.assert_allclose(fields[0], fields[1], atol=0.02)


def test_missing_values_are_left_out(tmp_path, daily):
    broken = daily.copy(deep=True)
    broken["2m_temperature"].values[100, 1, 2] = np.nan
    prepare_archive(open_source(broken), tmp_path / "a", **MADE, keep_faults=True)
    left_out = open_source(broken, exclude=[str(broken.time.values[100])])
    prepare_archive(left_out, tmp_path / "b", **MADE)
    with (
        xr.open_zarr(tmp_path / "a", group="climatology", chunks=None) as a,
        xr.open_zarr(tmp_path / "b", group="climatology", chunks=None) as b,
    ):
        assert np.all(np.isfinite(a["2m_temperature"].values))
        np.testing.assert_allclose(
            a["2m_temperature"][..., 1, 2].values, b["2m_temperature"][..., 1, 2].values, atol=0.02
        )


def test_records_that_are_too_short(tmp_path, daily):
    source = open_source(daily, period=("2019-01-01", "2019-06-30"))
    with pytest.raises(ValueError, match="no climatology: at 00 UTC, day 211 of the year has no time in its window"):
        prepare_archive(source, tmp_path / "a", **MADE)
    archive = prepare_archive(source, tmp_path / "none")  # where it is left to prepare, there is none, and it says why
    assert archive.attributes["climatology"] == "none: its times span less than 10 years"
    prepare_archive(source, tmp_path / "a", climatology=False)
    assert not (tmp_path / "a" / "climatology").exists()
    for years, long_enough in ((9, False), (10, True)):
        times = np.arange("1990", str(1990 + years), dtype="datetime64[D]").astype("datetime64[ns]")
        assert bool(choose_terms(times, times == times, None)[0]) == long_enough


def test_winters_alone_make_an_archive_without_a_climatology(tmp_path):
    starts = [np.datetime64(f"{year}-12-01T00", "ns") for year in range(1990, 2003)]
    times = np.concatenate([start + np.arange(4) * np.timedelta64(24, "h") for start in starts])
    source = open_source(make_dataset(times=times, levels=(500,)), variables=["2m_temperature"])
    archive = prepare_archive(source, tmp_path / "a")
    assert source.step_hours == 24 and len(archive.times) == len(times)
    assert archive.attributes["climatology"].startswith("none: at 00 UTC, day ")
    with pytest.raises(ValueError, match="lacks a season"):
        prepare_archive(source, tmp_path / "b", **MADE)


def test_a_flipped_byte_is_found_and_what_is_whole_is_not_made_again(tmp_path, daily, monkeypatch):
    monkeypatch.setattr(writer, "publish", lambda *_, **__: 1 / 0)  # stopped at the end
    with pytest.raises(ZeroDivisionError):
        prepare_archive(open_source(daily), tmp_path / "a", **MADE)
    monkeypatch.undo()
    monkeypatch.setattr(normals, "_make_block", lambda block: 1 / 0)
    prepare_archive(open_source(daily), tmp_path / "a", **MADE)
    assert verify_archive(tmp_path / "a") == []
    (shard,) = (tmp_path / "a" / "climatology" / "2m_temperature" / "c" / "0").rglob("0/0/0")
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    (finding,) = verify_archive(tmp_path / "a")
    assert finding.startswith("climatology: 2m_temperature, hour 0, day 1: cannot be read")


def test_weights():
    weights = smooth(np.eye(366)[30])
    assert not weights[61:].any()
    weights = weights[:61]
    assert weights[0] == weights[60] == 0
    assert weights.mean() == pytest.approx(1)
    np.testing.assert_allclose(np.diff(weights[:31]), weights[30] / 30)
