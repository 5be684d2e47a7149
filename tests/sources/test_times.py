"""Times of every calendar, step and forecast come out as they are, or are refused; nothing is left out silently."""

import numpy as np
import pytest
import xarray as xr

from tests.sources.written_sources import TIMES, frames_of, make_dataset
from weathermixer.sources.sources import Source, open_source

HOUR = np.timedelta64(1, "h")
START = np.datetime64("2020-01-01T00", "ns")


def dataset_at(times) -> xr.Dataset:
    return make_dataset(times=np.asarray(times, "datetime64[ns]"), levels=(500,))[["2m_temperature", "temperature"]]


def check_frames(source: Source, truth: xr.Dataset) -> None:
    """The source's frames are the truth's at its times."""
    np.testing.assert_array_equal(
        source.read(slice(None)), frames_of(truth.sel(time=source.times), source.channels).astype(np.float32)
    )


def hours(times) -> list[str]:
    return [f"{time:.13}" for time in times]


@pytest.mark.parametrize(
    "since, dtype",
    [
        ("days since 0001-01-01 00:00:00", "f8"),  # nanoseconds off
        ("days since 1900-01-01", "f4"),  # minutes off
        ("days since 1970-01-01", "f4"),
        ("seconds since 1970-01-01", "f8"),
    ],
)
def test_inexact_times_are_the_hours_that_they_mean(tmp_path, since, dtype):
    truth = dataset_at(START + np.arange(30) * HOUR)
    encoding = {"units": since, "dtype": dtype, "calendar": "standard"}
    truth.to_netcdf(tmp_path / "a.nc", encoding={"time": encoding})
    source = open_source(tmp_path / "a.nc")
    assert hours(source.times) == ["2020-01-01T00", "2020-01-01T06", "2020-01-01T12", "2020-01-01T18", "2020-01-02T00"]
    check_frames(source, truth)
    assert any("between steps of 6 h at 00 06 12 18 UTC: 25" in line for line in source.account)


def test_seconds_off_in_some_times_are_told_and_minutes_are_not_hidden(tmp_path):
    times = START + np.arange(8) * 6 * HOUR
    times[2] += np.timedelta64(18, "s")
    times[5] += np.timedelta64(20, "m")
    source = open_source(dataset_at(times))
    assert "times up to 3 minutes off a whole hour are taken as that hour: dataset" in source.account
    assert "left out, not on a whole hour, as an archive's times are: 1, 2020-01-02T06:20" in source.account
    assert hours(source.missing_times) == ["2020-01-02T06"]
    half_past = START + np.arange(8) * 6 * HOUR + np.timedelta64(30, "m")
    with pytest.raises(ValueError, match="not on a whole hour, as an archive's times are: 8, 2020-01-01T00:30 to"):
        open_source(dataset_at(half_past))
    every_minute = open_source(dataset_at(START + np.arange(13) * np.timedelta64(1, "m")))
    assert hours(every_minute.times) == ["2020-01-01T00"]


def test_noleap_dates_are_read_and_the_leap_day_is_missing(tmp_path):
    dates = xr.date_range("2020-02-27", periods=16, freq="6h", calendar="noleap", use_cftime=True)
    truth = dataset_at(START + np.arange(16) * 6 * HOUR)
    truth.assign_coords(time=dates).to_netcdf(tmp_path / "a.nc")
    source = open_source(tmp_path / "a.nc")
    assert hours(source.missing_times) == ["2020-02-29T00", "2020-02-29T06", "2020-02-29T12", "2020-02-29T18"]
    assert f"dates of calendar noleap are taken as the standard calendar's: {tmp_path}/a.nc" in source.account
    np.testing.assert_array_equal(source.read(slice(None)), frames_of(truth, source.channels))


@pytest.mark.parametrize("calendar, first", [("360_day", "2020-02-28"), ("all_leap", "2021-02-28")])
def test_dates_that_are_no_dates_are_refused_with_a_remedy_that_works(tmp_path, calendar, first):
    dates = xr.date_range(first, periods=16, freq="6h", calendar=calendar, use_cftime=True)
    dataset = dataset_at(START + np.arange(16) * 6 * HOUR).assign_coords(time=dates)
    dataset.to_netcdf(tmp_path / "a.nc")
    with pytest.raises(ValueError, match=rf"a.nc, calendar {calendar}: .*dataset.convert_calendar\('standard', align"):
        open_source(tmp_path / "a.nc")
    converted = dataset.convert_calendar("standard", align_on="date")
    assert len(open_source(converted).times) == len(converted.time) < 16


@pytest.mark.parametrize(
    "times, units, message",
    [
        ([20200101.25, 20200101.5], "day as %Y%m%d.%f", "are float64, such as 20200101.25, not dates: give them units"),
        ([0, 6], "hours since 2300-01-01", "a.nc, from 2300-01-01 00:00:00, are not between the years 1678 and 2262"),
        ([1, 2], "days since 0850-01-01", "not between the years 1678 and 2262"),
        ([0, 1], "months since 2020-01-01", "a.nc cannot be decoded: .*months since"),
        (["2020-01-01", "2020-01-02"], None, "such as 2020-01-01, not dates"),
    ],
)
def test_times_that_are_not_dates_are_named(tmp_path, times, units, message):
    dataset = dataset_at([START, START + 6 * HOUR]).drop_vars("time")
    attributes = {} if units is None else {"units": units}
    dataset.assign_coords(time=("time", times, attributes)).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / "a.nc")


def test_a_time_dimension_without_dates_is_named():
    with pytest.raises(ValueError, match="dataset has a dimension time without dates"):
        open_source(dataset_at([START, START + 6 * HOUR]).drop_vars("time"))


@pytest.mark.parametrize(
    "times",
    [
        np.arange("1950-01", "1960-01", dtype="datetime64[M]"),
        np.arange("1950-01", "1960-01", dtype="datetime64[M]") + np.timedelta64(15, "D"),
        np.arange("1950", "1990", dtype="datetime64[Y]"),
        np.arange("2020-07", "2020-09", dtype="datetime64[M]"),
    ],
)
@pytest.mark.parametrize("step_hours", [None, 744])
def test_months_and_years_are_refused(times, step_hours):
    with pytest.raises(ValueError, match="days apart, as monthly or yearly data are"):
        open_source(dataset_at(times), step_hours=step_hours)


@pytest.mark.parametrize("own, taken", [(1, 6), (2, 6), (3, 6), (6, 6), (4, 4), (5, 5), (12, 12), (24, 24), (120, 120)])
def test_the_default_step_holds_every_pair_of_six_hours_or_every_time(own, taken):
    source = open_source(dataset_at(START + np.arange(12) * own * HOUR))
    assert source.step_hours == taken
    assert len(source.missing_times) == 0
    assert len(source.times) == -(-12 * own // taken)


def test_steps_and_phases_that_change_are_told():
    first, then = START + np.arange(10) * 12 * HOUR, START + np.arange(6) * 12 * HOUR + np.timedelta64(126, "h")
    source = open_source(dataset_at(np.concatenate([first, then])))
    assert source.step_hours == 12 and set(hours(source.times)) == set(hours(first))
    assert source.account[0].startswith("found: 16, 2020-01-01T00 to ")
    assert "left out, between steps of 12 h at 00 12 UTC: 6, 2020-01-06T06 to 2020-01-08T18" in source.account
    # where far more times lie elsewhere, those are taken
    source = open_source(dataset_at(np.concatenate([first[:2], then])))
    assert set(hours(source.times)) == set(hours(then))
    finer = START + 240 * HOUR + np.arange(8) * 3 * HOUR
    source = open_source(dataset_at(np.concatenate([START + np.arange(40) * 6 * HOUR, finer])))
    assert "found: 48, 2020-01-01T00 to 2020-01-11T21, in steps of 3 h (7), 6 h (40)" in source.account
    assert "left out, between steps of 6 h at 00 06 12 18 UTC: 4, 2020-01-11T03 to 2020-01-11T21" in source.account


def test_the_step_is_of_times_that_all_variables_have():
    truth = dataset_at(START + np.arange(40) * 6 * HOUR)
    source = open_source([truth[["2m_temperature"]], truth[["temperature"]].isel(time=slice(0, None, 2))])
    assert source.step_hours == 12 and len(source.times) == 20 and len(source.missing_times) == 0
    assert "left out, temperature lacks them: 20, 2020-01-01T06 to 2020-01-10T18" in source.account


@pytest.mark.parametrize(
    "exclude, left",
    [
        (["2020-01-02"], ["2020-01-01", "2020-01-03", "2020-01-04", "2020-01-05"]),
        (["2020-01-01T06", "2020-01-03T18"], None),
        (["2019", "2020-01-01"], ["2020-01-02", "2020-01-03", "2020-01-04", "2020-01-05"]),
    ],
)
def test_all_times_within_what_is_excluded_are_left_out(exclude, left):
    times = START - 24 * HOUR + np.arange(24) * 6 * HOUR
    source = open_source(dataset_at(times), exclude=exclude)
    days = np.unique(source.times.astype("datetime64[D]")).astype(str).tolist()
    if left is None:
        assert set(hours(times)) - set(hours(source.times)) == set(exclude)
    else:
        assert days == left or days == ["2019-12-31", *left]
    check_frames(source, dataset_at(times))
    with pytest.raises(ValueError, match="times to exclude, 2021, are not in dataset"):
        open_source(dataset_at(times), exclude=["2021"])
    with pytest.raises(ValueError, match="no times that are wanted.*left out, excluded by 20"):
        open_source(dataset_at(times), exclude=["2019", "2020"])


# Forecasts: never under their start's time.


def make_forecasts(starts, leads) -> tuple[xr.Dataset, xr.Dataset]:
    """(the truth, forecasts of it with dimensions time and prediction_timedelta) as WeatherBench 2 writes them."""
    starts, leads = np.asarray(starts, "datetime64[ns]"), np.asarray(leads, "timedelta64[h]").astype("timedelta64[ns]")
    truth = dataset_at(np.unique(starts[:, None] + leads))
    parts = [truth.sel(time=starts + lead).assign_coords(time=starts) for lead in leads]
    forecasts = xr.concat(parts, xr.DataArray(leads, dims="prediction_timedelta", name="prediction_timedelta"))
    return truth, forecasts.transpose("time", "prediction_timedelta", ...)


FORECASTS = "forecasts are taken at the times that they are valid for, start and lead together: "


def test_one_lead_of_many_forecasts(tmp_path):
    truth, forecasts = make_forecasts(START + np.arange(6) * 6 * HOUR, [6, 12])
    forecasts.to_zarr(tmp_path / "a.zarr", consolidated=False)
    for text in ("6h", "6", "06", "6 hours", 6):
        source = open_source(tmp_path / "a.zarr", select={"prediction_timedelta": text})
        assert hours(source.times[[0, -1]]) == ["2020-01-01T06", "2020-01-02T12"]
        check_frames(source, truth)
    assert f"{FORECASTS}{tmp_path}/a.zarr" in source.account
    with pytest.raises(ValueError, match="prediction_timedelta=21600000000000: there is no such .*; it has 6h, 12h"):
        open_source(tmp_path / "a.zarr", select={"prediction_timedelta": 21600000000000})
    with pytest.raises(ValueError, match=r"of prediction_timedelta 6h and 12h: choose one \(--select=pred.*=6h\)"):
        open_source(
            xr.open_zarr(tmp_path / "a.zarr", consolidated=False).assign(
                temperature=forecasts.temperature + forecasts.time.dt.hour
            )
        )


def test_leads_that_do_not_overlap_are_one_series():
    truth, forecasts = make_forecasts(START + np.arange(4) * 12 * HOUR, [6, 12])
    source = open_source(forecasts)
    assert source.step_hours == 6 and len(source.times) == 8
    check_frames(source, truth)


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f,
        lambda f: f.isel(time=0),
        lambda f: f.rename(prediction_timedelta="lead_time").swap_dims(lead_time="n"),
    ],
)
def test_one_forecast_is_a_series_of_its_valid_times(change):
    truth, forecasts = make_forecasts([START], np.arange(5) * 6)
    source = open_source(change(forecasts))
    assert hours(source.times) == hours(START + np.arange(5) * 6 * HOUR)
    check_frames(source, truth)


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.rename(time="init_time", prediction_timedelta="lead_time"),
        lambda f: f.rename(time="forecast_reference_time", prediction_timedelta="forecast_period"),
        lambda f: f.assign_coords(valid_time=f.time + f.prediction_timedelta),
        lambda f: f.rename(prediction_timedelta="lead_time").swap_dims(lead_time="n"),
        lambda f: f.isel(prediction_timedelta=0),
        lambda f: f.isel(prediction_timedelta=0).assign_coords(valid_time=f.time + f.prediction_timedelta[0]),
        lambda f: f.isel(prediction_timedelta=0).rename(prediction_timedelta="step"),
        lambda f: f.assign_coords(prediction_timedelta=("prediction_timedelta", [6, 12], {"units": "hours"})),
        lambda f: f.assign_coords(prediction_timedelta=("prediction_timedelta", [0.25, 0.5], {"units": "days"})),
        lambda f: f.assign_coords(time=xr.date_range("2020-01-01", periods=4, freq="6h", use_cftime=True)),
        lambda f: f.assign_coords(forecast_reference_time=("time", f.time.values)),
    ],
)
def test_forecasts_by_other_names(tmp_path, change):
    truth, forecasts = make_forecasts(START + np.arange(4) * 6 * HOUR, [6, 12])
    dataset = change(forecasts)
    dataset.to_netcdf(tmp_path / "a.nc")
    names = {"lead_time", "forecast_period", "prediction_timedelta"} & {*dataset.coords}
    source = open_source(tmp_path / "a.nc", select=dict.fromkeys(names, "6h"))
    assert hours(source.times) == hours(START + np.arange(1, 5) * 6 * HOUR)
    check_frames(source, truth)


def test_times_are_valid_times_where_a_reference_time_stands_beside():
    """CF and Iris: time, forecast_reference_time and forecast_period along it."""
    truth = dataset_at(START + np.arange(4) * 6 * HOUR)
    beside = {
        "forecast_reference_time": START,
        "forecast_period": ("time", np.arange(4) * 6, {"units": "hours", "standard_name": "forecast_period"}),
    }
    source = open_source(truth.assign_coords(beside))
    np.testing.assert_array_equal(source.times, truth.time.values)
    check_frames(source, truth)


def test_dates_that_stand_beside_offsets(tmp_path):
    """GraphCast's files: dims batch and time, a timedelta; coordinate datetime(batch, time)."""
    truth = dataset_at(TIMES)
    dates = truth.time.values
    offsets = truth.expand_dims(batch=1).assign_coords(time=dates - dates[1])
    offsets.assign_coords(datetime=(("batch", "time"), dates[None])).to_netcdf(tmp_path / "a.nc")
    check_frames(open_source(tmp_path / "a.nc"), truth)
    offsets.to_netcdf(tmp_path / "b.nc")
    with pytest.raises(ValueError, match="times of .*b.nc are offsets, and no coordinate has their dates"):
        open_source(tmp_path / "b.nc")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: f.drop_vars("prediction_timedelta"), "a dimension prediction_timedelta without leads"),
        (
            lambda f: f.assign_coords(prediction_timedelta=[6, 12]),
            "prediction_timedelta is a forecast's lead, in units None: give it units, as with `ncatted -a units,predi",
        ),
        (lambda f: f.rename(time="valid"), "has leads .prediction_timedelta., but not clearly their starts"),
        (
            lambda f: f.isel(prediction_timedelta=0, drop=True).assign_coords(step=("time", np.full(4, 6 * HOUR))),
            "has leads .step., but not clearly their starts: give it a valid_time",
        ),
    ],
)
def test_forecasts_that_do_not_tell_their_times_are_refused(change, message):
    _, forecasts = make_forecasts(START + np.arange(4) * 6 * HOUR, [6, 12])
    with pytest.raises(ValueError, match=message):
        open_source(change(forecasts))


# Times that lie in several files.


def test_equal_repeats_are_taken_once(tmp_path):
    truth = dataset_at(TIMES)
    truth.isel(time=slice(0, 12)).to_netcdf(tmp_path / "january.nc")
    packed = {}
    for name, field in truth.items():
        low, high = float(field.min()), float(field.max())
        packed[name] = {"dtype": "i2", "scale_factor": (high - low) / 65000, "add_offset": (high + low) / 2}
        packed[name]["_FillValue"] = -32768
    truth.isel(time=slice(10, 20)).to_netcdf(tmp_path / "february.nc", encoding=packed)  # nearly equal
    source = open_source(tmp_path / "*.nc")
    np.testing.assert_array_equal(source.times, TIMES)
    np.testing.assert_allclose(source.read(slice(None)), frames_of(truth, source.channels), atol=1e-3)
    lines = [line for line in source.account if "there again with the same values" in line]
    assert len(lines) == 2 and all("2 times of" in line and "january.nc" in line for line in lines)


def test_repeats_that_differ_are_refused_with_a_remedy_that_works(tmp_path):
    truth = dataset_at(TIMES)
    truth.isel(time=slice(0, 12)).to_netcdf(tmp_path / "a.nc")
    other = truth.isel(time=slice(10, 20)).copy(deep=True)
    other.temperature[1, 0, 3, 4] += 0.5
    other.to_netcdf(tmp_path / "b.nc")
    message = r"temperature at 2020-01-01T18:00 lies twice .*in .*a.nc and .*b.nc: .*\(--exclude=2020-01-01T18\)"
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / "*.nc")
    check_frames(open_source(tmp_path / "*.nc", exclude=["2020-01-01T18"]), truth)
    check_frames(open_source(tmp_path / "*.nc", period=("2020-01-02", "2020")), truth)
    once = open_source([tmp_path / "a.nc", truth.isel(time=[13, 12, 13, 14])])
    check_frames(once, truth)


def test_members_in_files_of_their_own_are_chosen(tmp_path):
    truth = dataset_at(TIMES)
    for number in (0, 1):
        (truth + number).assign_coords(number=number).to_netcdf(tmp_path / f"{number}.nc")
    with pytest.raises(ValueError, match=r"of number 0 and 1: choose one \(--select=number=0\)"):
        open_source(tmp_path / "*.nc")
    check_frames(open_source(tmp_path / "*.nc", select={"number": 1}), truth + 1)
