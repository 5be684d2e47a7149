"""The times of a source: forecasts at the times that they are valid for, dates of any calendar, and which are taken.

An archive's times are whole hours, whole steps apart. What is not taken of a source's times has a line in the account.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from weathermixer.archive.archive import EPOCH, HOUR
from weathermixer.archive.sampling import in_period
from weathermixer.sources.parts import Note

NEAR = np.timedelta64(3, "m")  # so near to a whole hour, that hour is meant: days in float32 are as inexact
LONGEST_STEP = np.timedelta64(28, "D")  # months and years are not equally long
_RANGE = "are not between the years 1678 and 2262: shift them, as with `cdo shifttime,1000years`"
STARTS = ("forecast_reference_time", "init_time", "initial_time", "initialization_time", "reference_time", "start_time")
LEADS = ("prediction_timedelta", "step", "lead_time", "leadtime", "lead", "forecast_period", "forecast_hour")


def read_lead(coordinate: xr.DataArray, *, source: str) -> np.ndarray | None:
    """A coordinate's values as timedelta64[ns] where it is a forecast's lead; ValueError for leads without units."""
    if coordinate.dtype.kind == "m":
        return np.asarray(coordinate.values, "timedelta64[ns]")
    if coordinate.name not in LEADS and coordinate.attrs.get("standard_name") != "forecast_period":
        return None
    units = coordinate.attrs.get("units")
    try:
        return np.asarray(coordinate.values * pd.Timedelta(1, str(units).lower()).to_timedelta64())
    except (ValueError, TypeError):
        what = f"{source}: {coordinate.name} is a forecast's lead, in units {units!r}"
        raise ValueError(f"{what}: give it units, as with `ncatted -a units,{coordinate.name},c,c,hours`") from None


def at_valid_times(dataset: xr.Dataset, notes: list[Note], *, source: str) -> list[xr.Dataset]:
    """A dataset at the times that its fields are valid for: a part for each lead where there are several starts.

    Raises ValueError for a forecast whose starts or leads are not told.
    """
    coords = dataset.coords
    leads = {
        name: lead for name in coords if name != "time" and (lead := read_lead(coords[name], source=source)) is not None
    }
    if "time" in coords and coords["time"].dtype.kind == "m":
        # GraphCast's files: offsets, and dates beside them
        dates = [name for name, c in coords.items() if c.dtype.kind == "M" and "time" in c.dims]
        if len(dates) != 1 or coords[dates[0]].size != dataset.sizes["time"]:
            raise ValueError(f"times of {source} are offsets, and no coordinate has their dates: give it a valid_time")
        return [dataset.assign_coords(time=coords[dates[0]].values.ravel()).drop_vars(dates)]
    if unknown := [name for name in LEADS if name in dataset.dims and name not in coords]:
        raise ValueError(f"{source} has a dimension {unknown[0]} without leads: give it a coordinate, in hours")
    if any(lead.any() for lead in leads.values()):
        notes.append(Note("forecasts are taken at the times that they are valid for, start and lead together", source))
    given = [name for name in ("time", "valid_time", *STARTS) if name in coords]
    start, told = (next((name for name in names if name in coords), None) for names in (("time", *STARTS), STARTS))
    if "valid_time" in coords and coords["valid_time"].ndim <= 1:
        valid = xr.Variable(coords["valid_time"].dims, coords["valid_time"].values)
    elif start == "time" and told and not np.array_equal(coords["time"].values, coords[told].values):
        return [dataset.drop_vars(told)]  # CF: `time` is what the fields are about where a reference time stands beside
    elif not leads:
        return [dataset]
    else:
        (name, lead), *more = leads.items()
        if start is None or more or lead.ndim > 1 or set(coords[name].dims) & set(coords[start].dims):
            what = f"{source} has leads ({', '.join(leads)}), but not clearly their starts"
            raise ValueError(f"{what}: give it a valid_time")
        starts = xr.Variable(coords[start].dims, read_dates(coords[start], notes, source=source))
        if lead.ndim and starts.size == 1:
            dataset, starts = dataset.squeeze(starts.dims), starts.squeeze()
        valid = starts + xr.Variable(coords[name].dims, lead)
    parts = [(dataset.drop_vars(given), valid)]
    for dim in valid.dims[1:]:  # of leads
        parts = [(part.isel({dim: n}), times.isel({dim: n})) for part, times in parts for n in range(valid.sizes[dim])]
    return [
        part.rename(dict.fromkeys(times.dims, "time")).assign_coords(time=(["time"] * times.ndim, times.values))
        for part, times in parts
    ]


def with_dates(dataset: xr.Dataset, notes: list[Note], *, source: str) -> xr.Dataset:
    """The dataset with times as datetime64[ns], those within NEAR of a whole hour on it."""
    if "time" in dataset.dims and "time" not in dataset.coords:
        raise ValueError(f"{source} has a dimension time without dates: give it a coordinate")
    if "time" not in dataset.coords:
        return dataset
    times = read_dates(dataset["time"], notes, source=source)
    hours = EPOCH + (times - EPOCH + np.timedelta64(30, "m")) // HOUR * HOUR
    apart = np.diff(np.unique(times)).min(initial=LONGEST_STEP)
    near = (hours != times) & (np.abs(hours - times) <= min(NEAR, apart // 4))
    if near.any():
        notes.append(Note(f"times up to {NEAR.astype(int)} minutes off a whole hour are taken as that hour", source))
    return dataset.assign_coords(time=np.where(near, hours, times))


def read_dates(coordinate: xr.DataArray, notes: list[Note], *, source: str) -> np.ndarray:
    """A coordinate's values as datetime64[ns], of whatever calendar; ValueError for what is no date in the standard."""
    values = coordinate.values
    first = np.ravel(values)[0] if values.size else "nothing"
    if values.dtype == object and hasattr(first, "calendar"):
        try:
            times = xr.CFTimeIndex(values.ravel()).to_datetimeindex(unsafe=True, time_unit="ns").to_numpy()
        except ValueError as error:
            if "overflow" in str(error):
                raise ValueError(f"times of {source}, from {first}, {_RANGE}") from None
            reason = str(error).partition(". ")[0]
            remedy = "convert it, as with xarray's dataset.convert_calendar('standard', align_on='date')"
            raise ValueError(f"times of {source}, calendar {first.calendar}: {reason}; {remedy}") from None
        if first.calendar not in ("standard", "gregorian", "proleptic_gregorian"):
            notes.append(Note(f"dates of calendar {first.calendar} are taken as the standard calendar's", source))
        return times.reshape(values.shape)
    if values.dtype.kind != "M":
        remedy = "give them units such as 'hours since 1970-01-01', as with `cdo setreftime,1970-01-01,00:00:00,1hour`"
        raise ValueError(f"times of {source} are {values.dtype}, such as {first}, not dates: {remedy}")
    times = np.asarray(values, "datetime64[ns]")
    if np.any(times.astype(values.dtype) != values):  # not-a-time differs from itself, dates beyond 1678 to 2262 wrap
        raise ValueError(f"times of {source} are missing (NaT), or {_RANGE}")
    return times


def choose_times(
    times: Mapping[str, np.ndarray],
    *,
    period: tuple[str, str] | None,
    step_hours: int | None,
    exclude: Sequence[str],
    source: str,
) -> tuple[np.ndarray, np.ndarray, int, list[str]]:
    """(times, missing times, step_hours, account): those that all variables have, in the period, on whole steps.

    `times` [time] of each variable ascend. The account tells, line by line, what was found, left out and taken.
    Raises ValueError where nothing is left, and where times are not whole steps apart, naming what there is.
    """
    if step_hours is not None and step_hours < 0:
        raise ValueError(f"step_hours={step_hours} must be at least 1, or 0 for all times whatever lies between")
    found = np.unique(np.concatenate(list(times.values())))
    common = found[np.all([np.isin(found, its) for its in times.values()], axis=0)]
    own = _find_step(common, source)
    step = (step_hours or own) * HOUR
    gaps = zip(*np.unique(np.diff(found), return_counts=True))
    often = [f"{gap / HOUR:g} h ({count})" for gap, count in gaps if count > 1]
    account = [f"found: {describe_times(found)}" + f", in steps of {', '.join(often)}" * bool(often)]

    def leave_out(there: np.ndarray, out: np.ndarray, why: str) -> np.ndarray:
        if out.any():
            account.append(f"left out, {why}: {describe_times(there[out])}")
        if out.all():
            raise ValueError(f"{source} has no times that are wanted and that all variables have; {'; '.join(account)}")
        return there[~out]

    there = found
    if period is not None:
        there = leave_out(there, ~in_period(there, period), f"not from {period[0]} to {period[1]}")
    for text in exclude:
        if not in_period(found, (text, text)).any():
            raise ValueError(f"times to exclude, {text}, are not in {source}; it has {describe_times(found)}")
        there = leave_out(there, in_period(there, (text, text)), f"excluded by {text}")
    for variable, its in times.items():
        there = leave_out(there, ~np.isin(there, its), f"{variable} lacks them")
    there = leave_out(there, (there - EPOCH) % HOUR != 0 * HOUR, "not on a whole hour, as an archive's times are")
    if step_hours == 0:
        return there, there[:0], own, [*account, f"taken: {describe_times(there)}"]
    # 00 UTC is a step, unless far more times lie on others
    phases, counts = np.unique((there - EPOCH) % step, return_counts=True)
    phase = phases[0] if phases[0] == 0 * HOUR and 2 * counts[0] >= counts.max() else phases[counts.argmax()]
    hours = range(int(phase / HOUR), 24, int(step / HOUR)) if 24 * HOUR % step == 0 * HOUR else ()
    daily = f" at {' '.join(f'{hour:02d}' for hour in hours)} UTC" * bool(hours)
    there = leave_out(there, (there - EPOCH) % step != phase, f"between steps of {step / HOUR:g} h{daily}")
    if step_hours is not None and len(there) > 1 and not np.any(np.diff(there) == step):
        raise ValueError(f"step_hours={step_hours}: no two times of {source} are so far apart; {account[0]}")
    missing = np.setdiff1d(np.arange(there[0], there[-1] + HOUR, step), there)
    account.append(f"taken: {describe_times(there)}, every {step / HOUR:g} h")
    if len(missing):
        account.append(f"missing between: {describe_times(missing)}")
    return there, missing, int(step / HOUR), account


def _find_step(times: np.ndarray, source: str) -> int:
    """6 h, or the most frequent step of these times, in whole hours, where that is no part of 6 h."""
    if len(times) < 2:
        return 6
    steps, counts = np.unique(np.diff(times), return_counts=True)
    own = steps[counts.argmax()]
    if own >= LONGEST_STEP:
        raise ValueError(
            f"times of {source} are {own / HOUR / 24:g} days apart, as monthly or yearly data are: an archive's steps "
            "are equally long, and months are not; give data of a step of at most 27 days"
        )
    whole = np.lcm(own.astype(np.int64), np.timedelta64(HOUR, "ns").astype(np.int64)) * np.timedelta64(1, "ns")
    return 6 if 6 * HOUR % own == 0 * HOUR else int(whole / HOUR)


def describe_times(times: np.ndarray) -> str:
    """How many times, and which: all of a few, or the first and the last."""
    texts = [text.removesuffix(":00") for text in np.datetime_as_string(times[[0, *range(len(times))[-2:]]], unit="m")]
    return f"{len(times)}, " + (" and ".join(dict.fromkeys(texts)) if len(times) < 3 else f"{texts[0]} to {texts[-1]}")
