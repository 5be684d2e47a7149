"""Forecasts of many starts and leads, computed one after another and gathered in memory in WeatherBench 2's form.

Dimensions are time (the start), number (the member, of ensembles), prediction_timedelta, level, latitude, longitude, in
SI units. A variable has all levels of any variable; where the model has none of it at a level, its values are missing.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np
import xarray as xr
from jax.sharding import NamedSharding, PartitionSpec, reshard
from jaxtyping import Array, Float, Int

import weathermixer
from weathermixer.archive.frames import Frames
from weathermixer.archive.standardization import Standardization, to_physical
from weathermixer.fields.grid import Grid
from weathermixer.fields.variables import VARIABLES, Channel
from weathermixer.forecasting.ensembles import Members
from weathermixer.forecasting.rollout import Forecaster, batches, withhold
from weathermixer.parallel.mesh import check_divides, use_mesh

# (positions of the starts, position of the lead, fields in SI units, cut over the mesh): a batch's first rows are those
# of the starts, of an ensemble of (start, member), members running fastest; the first channels are the dynamic ones
Forecast = tuple[Int[np.ndarray, " start"], int, Float[Array, "b n lat lon"]]


def make_forecast(
    model: Forecaster,
    frames: Frames,
    *,
    starts: Int[np.ndarray, " start"],
    batch_size: int,
    analysis: bool = False,
    members: Members | None = None,
) -> Iterator[Forecast]:
    """Yields a model's forecasts from the times `starts` of a data set, a batch of starts and a lead at a time.

    With `analysis` the first is the state that is started from. What that lacks is NaN at every lead. Of an ensemble
    `members` says which of the starts is which one's. Nothing here waits for the devices. Raises ValueError for a batch
    that does not divide.

    >>> run = weathermixer.open_run("runs/quickstart")
    >>> frames = run.open_frames("dry.archive")
    >>> model = weathermixer.model_forecaster(run.apply, run.params, frames, lead_hours=[6, 12])
    >>> forecasts = weathermixer.make_forecast(model, frames, starts=np.array([0, 8]), batch_size=2)
    >>> [(starts.tolist(), lead, fields.shape) for starts, lead, fields in forecasts]
    [([0, 1], 0, (2, 4, 16, 32)), ([0, 1], 1, (2, 4, 16, 32))]
    """
    check_divides(frames.mesh, batch_size=("batch", batch_size))
    with use_mesh(frames.mesh):
        for chosen, real in batches(len(starts), batch_size):
            begin, noise = frames.read(starts[chosen]), None
            if members:
                begin, noise = members.take(chosen).begin(frames, begin, frames.times[starts[chosen]])
            states = itertools.chain([begin] * analysis, model(starts[chosen], begin, noise))
            for lead, state in enumerate(states):
                yield chosen[real], lead, _in_units(state, begin, frames.standardization)


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


def gather(array: Array) -> np.ndarray:
    """An array whole, in the memory of every process."""
    return np.asarray(reshard(array, NamedSharding(array.sharding.mesh, PartitionSpec())))
