"""Forecasts of many starts and leads, computed one after another and gathered in memory in WeatherBench 2's form.

Dimensions are time (the start), number (the member, of ensembles), prediction_timedelta, level, latitude, longitude, in
SI units. A variable has all levels of any variable; where the model has none of it at a level, its values are missing.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr
from jax.sharding import NamedSharding, PartitionSpec, reshard
from jaxtyping import Array, Float, Int
from tqdm import tqdm

import weathermixer
from weathermixer.archive.frames import Frames
from weathermixer.archive.standardization import Standardization, to_physical
from weathermixer.fields.grid import Grid
from weathermixer.fields.variables import VARIABLES, Channel
from weathermixer.forecasting.ensembles import Members
from weathermixer.forecasting.rollout import Apply, batches, model_forecaster, tell_what_is_held, withhold
from weathermixer.parallel.mesh import check_divides, use_mesh

# (positions of the starts, position of the lead, fields in SI units, cut over the mesh): a batch's first rows are those
# of the starts, of an ensemble of (start, member), members running fastest; the first channels are the dynamic ones
Forecast = tuple[Int[np.ndarray, " start"], int, Float[Array, "b n lat lon"]]


def make_forecast(
    apply: Apply,
    params: Any,
    frames: Frames,
    *,
    starts: Int[np.ndarray, " start"],
    lead_steps: Sequence[int],
    batch_size: int,
    mode: str = "autoregressive",
    history: int = 1,
    prescribed: str = "analysis",
    leads: Sequence[int] = (1,),
    members: Members | None = None,
    progress: bool = False,
) -> Iterator[Forecast]:
    """Yields the forecasts from the times `starts` of a data set, a batch of starts and a lead at a time.

    Where lead_steps begin with 0 the first is the state that is started from. What that lacks is NaN at every lead.
    `prescribed` says where input-only channels come from on the way (rollout.make_advance), `leads` for which leads the
    model is; of an ensemble `members` says which of the starts is which one's. Nothing here waits for the devices.
    Raises ValueError for no starts and for a batch that does not divide.

    >>> run = weathermixer.open_run("runs/quickstart")
    >>> options = dict(starts=np.array([0, 8]), lead_steps=[1, 2], batch_size=2)
    >>> forecasts = weathermixer.make_forecast(run.apply, run.params, run.open_frames("dry.archive"), **options)
    >>> [(starts.tolist(), lead, fields.shape) for starts, lead, fields in forecasts]
    [([0, 1], 0, (2, 4, 16, 32)), ([0, 1], 1, (2, 4, 16, 32))]
    """
    if not len(starts):
        raise ValueError("no start to forecast from")
    check_divides(frames.mesh, batch_size=("batch", batch_size))
    ahead = [steps * frames.reference.step_hours for steps in lead_steps if steps]
    how = dict(mode=mode, history=history, prescribed=prescribed, leads=leads)
    model = model_forecaster(apply, params, frames, lead_hours=ahead, **how) if ahead else None
    tell_what_is_held(frames, starts, last_step=max(lead_steps), prescribed=prescribed)
    bar = tqdm(total=len(starts) * len(lead_steps), desc="forecast", unit="frame", disable=not progress, leave=False)
    with use_mesh(frames.mesh), bar:
        for chosen, real in batches(len(starts), batch_size):
            begin, noise = frames.read(starts[chosen]), None
            if members:
                begin, noise = members.take(chosen).begin(frames, begin, frames.times[starts[chosen]])
            states = model(starts[chosen], begin, noise) if model else ()
            if len(ahead) < len(lead_steps):
                states = itertools.chain([begin], states)
            for lead, state in enumerate(states):
                yield chosen[real], lead, _in_units(state, begin, frames.standardization)
                bar.update(int(real.sum()))


@jax.jit
def _in_units(prediction: Array, start: Array, standardization: Standardization) -> Array:
    return to_physical(withhold(prediction, start, standardization), standardization)


def describe_forecasts(
    times: np.ndarray,
    lead_hours: Sequence[int],
    grid: Grid,
    channels: Sequence[Channel],
    attributes: Mapping[str, str],
    members: int | None = None,
) -> xr.Dataset:
    """Forecasts without values: all are missing, and take no memory; levels ascend in hPa, as in WeatherBench 2."""
    hours = {"dtype": "int64", "units": "hours"}
    since = {"dtype": "int64", "units": "hours since 1970-01-01", "calendar": "proleptic_gregorian"}
    start = {
        "standard_name": "forecast_reference_time",
        "long_name": "time of the analysis that the forecast starts from",
    }
    leads = np.asarray(lead_hours, "timedelta64[h]").astype("timedelta64[ns]")
    lead = {"standard_name": "forecast_period", "long_name": "lead time"}
    coords = {"time": ("time", np.asarray(times, "datetime64[ns]"), start, since)}
    if members is not None:  # from 1, as ECMWF's perturbed members: its 0 is the control, which none of these is
        coords["number"] = ("number", 1 + np.arange(members), {"standard_name": "realization"})
    coords["prediction_timedelta"] = ("prediction_timedelta", leads, lead, hours)
    rows = tuple(coords)
    levels = sorted({channel.level_hpa for channel in channels if channel.level_hpa is not None})
    if levels:
        about = {"units": "hPa", "standard_name": "air_pressure", "positive": "down", "axis": "Z"}
        coords["level"] = ("level", np.array(levels, np.int64), about)
    for name, unit in (("latitude", "degrees_north"), ("longitude", "degrees_east")):
        coords[name] = (name, getattr(grid, name), {"units": unit, "standard_name": name})
    about = {"Conventions": "CF-1.10", "source": f"weathermixer {weathermixer.__version__}", **attributes}
    forecasts = xr.Dataset(coords=coords, attrs=about)
    for channel in channels:
        known = VARIABLES.get(channel.variable)
        about = {"long_name": channel.variable.replace("_", " "), "units": channel.units}
        about |= {"standard_name": known.standard_name} if known else {}
        dims = (*rows, *(() if channel.level_hpa is None else ("level",)), "latitude", "longitude")
        missing = np.broadcast_to(np.float32(np.nan), [forecasts.sizes[dim] for dim in dims])
        forecasts[channel.variable] = (dims, missing, about)
    return forecasts


def find_place(description: xr.Dataset, channel: Channel, rows: int | Int[np.ndarray, " b"], lead: int) -> tuple:
    """The index of a channel in its variable's array; rows are starts, of an ensemble (start, member)."""
    number = description.sizes.get("number")
    level = () if channel.level_hpa is None else (description.indexes["level"].get_loc(channel.level_hpa),)
    return (*((rows // number, rows % number) if number else (rows,)), lead, *level)


def collect_forecast(forecasts: Iterable[Forecast], description: xr.Dataset, channels: Sequence[Channel]) -> xr.Dataset:
    """Gathers forecasts as they come into a dataset in memory; every process has all of it."""
    found = description.copy(deep=True)
    for starts, lead, fields in forecasts:
        whole = gather(fields)
        for n, channel in enumerate(channels):
            place = find_place(description, channel, starts, lead)
            found[channel.variable].values[place] = whole[: len(starts), n]
    return found


def gather(fields: Float[Array, "b n lat lon"]) -> Float[np.ndarray, "b n lat lon"]:
    """Fields whole, in the memory of every process."""
    return np.asarray(reshard(fields, NamedSharding(fields.sharding.mesh, PartitionSpec())))
