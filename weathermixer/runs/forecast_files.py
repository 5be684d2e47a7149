"""Forecasts in files as forecasters: of WeatherBench 2's form, or of any that a source may have.

A forecast in a file is a source for each of its leads, whose times are those that it is valid at: names, units, levels
and orders are the sources room's. It is read in blocks, a lead of a few starts at a time.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import xarray as xr

from weathermixer.archive.frames import Frames
from weathermixer.archive.sampling import find_times
from weathermixer.forecasting.rollout import Forecaster
from weathermixer.runs.data import make_frames, open_data_set
from weathermixer.sources.formats import open_raw
from weathermixer.sources.selection import find_entries
from weathermixer.sources.sources import Source, open_source
from weathermixer.sources.times import LEADS

MEMBERS = ("number", "realization", "member", "ensemble")
HOUR = np.timedelta64(1, "h")


class ForecastFile(NamedTuple):
    """Forecasts in files."""

    pieces: list[xr.Dataset]
    leads: dict[int, list[dict[str, Any]]]  # for each lead in hours what selects each member in the pieces
    options: dict[str, Any]  # open_source's, for all of them
    first: Source  # of the first lead and member


class Placed(NamedTuple):
    """Forecasts beside the analyses."""

    starts: np.ndarray  # times
    make: Callable[[np.ndarray], Forecaster]  # of some of these
    how: str  # a word about it


def open_forecast(data: str | os.PathLike | xr.Dataset, **options: Any) -> ForecastFile:
    """Opens forecasts; `options` are open_source's. Raises ValueError where there are no leads."""
    pieces, _ = open_raw([data])
    name = "the dataset" if isinstance(data, xr.Dataset) else data
    select = dict(options.pop("select", None) or {})
    lead_name, entries = find_entries(pieces, LEADS)
    if lead_name is None:
        raise ValueError(f"{name} has no leads ({', '.join(LEADS)}): it holds analyses, or give it one of these")
    member_name, members = find_entries(pieces, [name for name in MEMBERS if name not in select])
    hours = {float(entry.rstrip("h")): entry for entry in entries}
    leads = {
        int(lead): [select | {lead_name: hours[lead]} | ({member_name: m} if m else {}) for m in members or [None]]
        for lead in sorted(hours)
        if lead > 0 and lead == int(lead)
    }
    if not leads:
        raise ValueError(f"{name} has the leads {', '.join(entries)} alone: none is a whole number of hours")
    some = next(iter(leads.values()))[0]
    return ForecastFile(pieces, leads, options, open_source(pieces, **options, select=some, static=(), step_hours=0))


def place_file(file: ForecastFile, frames: Frames, lead_hours: Sequence[int], regrid: str | None) -> Placed:
    def open_one(select: dict[str, Any]) -> Frames:
        data = open_data_set(file.pieces, frames.reference, **file.options, select=select, step_hours=0)
        return make_frames(data, frames.reference, frames.mesh, method=regrid)

    leads = {lead: [open_one(select) for select in file.leads[lead]] for lead in lead_hours}
    starts = [one.times - lead * HOUR for lead, members in leads.items() for one in members]

    def forecast(starts, state):
        for lead, members in leads.items():
            wanted = frames.times[starts] + lead * HOUR
            fields = [one.read(find_times(one.times, wanted)) for one in members]
            yield fields[0] if len(fields) == 1 else jnp.stack(fields)

    count = len(leads[lead_hours[0]])
    how = f" ({count} members)" if count > 1 else ""
    return Placed(functools.reduce(np.intersect1d, starts), lambda times: forecast, how)
