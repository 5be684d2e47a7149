"""The climatology that forecasts are measured against: the mean state for an hour of the day and a day of the year.

It is held as a few coefficient fields per hour instead of a field per hour and day (1464 of them: 420 GB at 0.25
degrees), so it stays on the mesh, is cut like any field, and is fitted in one pass over the training period. An archive
or another file may bring those fields itself, in WeatherBench 2's definition: they are read for the times that are
asked.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from weathermixer.archive import storage
from weathermixer.archive.archive import CLIMATOLOGY, Archive
from weathermixer.archive.frames import Frames
from weathermixer.archive.reference import Reference
from weathermixer.archive.sampling import days_of_year, find_times
from weathermixer.archive.standardization import make_standardization
from weathermixer.forecasting.rollout import batches
from weathermixer.parallel.mesh import put, sharding, spec, use_mesh

DAYS_PER_YEAR = 365.2425
# With less than two years, a seasonal cycle cannot be told from the weather of those seasons
YEARS_FOR_SEASONS = 2
CALENDAR_YEAR = 2020  # it has 366 days
# Four annual harmonics resolve about 45 days, as the 61-day window of WeatherBench 2's climatology does
HARMONICS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Climatology:
    """Standardized mean state: coefficients [term, n, lat, lon] of the terms of `climatology_terms`."""

    coefficients: Float[Array, "term n lat lon"]
    hours: tuple[int, ...]
    harmonics: int

    @property
    def description(self) -> str:
        seasons = f" with {self.harmonics} annual harmonics" if self.harmonics else ""
        return f"mean of the training period by hour of day{seasons}"

    def at(self, times: np.ndarray) -> Float[Array, "b n lat lon"]:
        """The standardized climatology at these times, a global array cut like a batch of fields."""
        terms = climatology_terms(times, hours=self.hours, harmonics=self.harmonics)
        mesh = self.coefficients.sharding.mesh
        return _combine(put(terms.astype(np.float32), mesh, "batch", None), self.coefficients)


def climatology_terms(times: np.ndarray, *, hours: tuple[int, ...], harmonics: int) -> Float[np.ndarray, "time term"]:
    """Values of the basis functions at these times, ordered (hour, annual term).

        [hour of t = hour] * {1, cos(2 pi k d / year), sin(2 pi k d / year), k = 1..harmonics}    d: days into the year

    Raises ValueError for a time whose hour of day the climatology does not know.
    """
    times = np.asarray(times, "datetime64[ns]")
    hour = (times - times.astype("datetime64[D]")) // np.timedelta64(1, "h")
    unknown = sorted(set(hour.tolist()) - set(hours))
    if unknown:
        raise ValueError(f"no climatology for hours {unknown}: its period has the hours {list(hours)} only")
    days = (times - times.astype("datetime64[Y]")) / np.timedelta64(1, "D")
    angles = 2 * np.pi / DAYS_PER_YEAR * np.arange(1, harmonics + 1) * days[:, None]
    annual = np.concatenate([np.ones((len(times), 1)), np.cos(angles), np.sin(angles)], axis=1)
    of_hour = hour[:, None] == np.asarray(hours)
    return (of_hour[:, :, None] * annual[:, None, :]).reshape(len(times), -1)


def make_climatology(
    frames: Frames, *, indices: Int[np.ndarray, " time"], batch_size: int, progress: bool = False
) -> Climatology:
    """Fits the climatology to the frames `indices` of a data set (a training period), read once, in batches.

        coefficients = (sum_t f(t) f(t)^T)^-1  sum_t f(t) x(t)        f: the terms at time t, x: the standardized frame

    Frames that span at least two years give the terms annual harmonics (hour of day x day of year); fewer give the mean
    by hour of day. A point that lacks a value at any time has no climatology: NaN. Raises ValueError without frames.

    >>> frames = weathermixer.open_run("runs/quickstart").open_frames("dry.archive")
    >>> climatology = weathermixer.make_climatology(frames, indices=np.arange(60), batch_size=20)
    >>> climatology.description, climatology.coefficients.shape
    ('mean of the training period by hour of day', (4, 4, 16, 32))
    """
    if not len(indices):
        raise ValueError(
            f"the climatology's period holds no frame of {frames.name}: choose a training period with data"
        )
    times = frames.times[indices]
    span_years = (times[-1] - times[0]) / np.timedelta64(1, "D") / DAYS_PER_YEAR
    harmonics = HARMONICS if span_years >= YEARS_FOR_SEASONS - 0.01 else 0
    hours = tuple(np.unique((times - times.astype("datetime64[D]")) // np.timedelta64(1, "h")).tolist())
    terms = climatology_terms(times, hours=hours, harmonics=harmonics)

    gram = terms.T @ terms
    with use_mesh(frames.mesh):
        shape = (terms.shape[1], frames.reference.channel_set.size, *frames.reference.grid.shape)
        total = jnp.zeros(shape, jnp.float32, device=sharding(frames.mesh, None, "channel", "lat", "lon"))
        parts = list(batches(len(indices), batch_size))
        for chosen, real in tqdm(parts, desc="climatology", disable=not progress, leave=False):
            weights = (terms[chosen] * real[:, None]).astype(np.float32)
            placed = put(weights, frames.mesh, "batch", None)
            total = _accumulate(total, placed, frames.read(indices[chosen]))
        return Climatology(_solve(np.linalg.inv(gram).astype(np.float32), total), hours, harmonics)


@functools.partial(jax.jit, donate_argnums=0)
def _accumulate(total: Array, terms: Array, frames: Array) -> Array:
    cut = spec(None, "channel", "lat", "lon")
    return total + jnp.einsum("bk,bnij->knij", terms, frames, precision="highest", out_sharding=cut)


@jax.jit
def _solve(inverse: Array, total: Array) -> Array:
    return jnp.einsum("lk,knij->lnij", inverse, total, precision="highest")


@jax.jit
def _combine(terms: Array, coefficients: Array) -> Array:
    return jnp.einsum("bk,knij->bnij", terms, coefficients, precision="highest")


@dataclasses.dataclass(frozen=True, eq=False)
class Calendar:
    """A climatology that is held by hour and day: frames of the days of the year CALENDAR_YEAR.

    `period` is the first and last date of the times that it is the mean of, where that is known.
    """

    frames: Frames
    description: str
    period: tuple[str, str] | None = None

    def at(self, times: np.ndarray) -> Float[Array, "b n lat lon"]:
        """The standardized climatology at these times; ValueError for a day or an hour that it does not have."""
        wanted = _calendar_times(days_of_year(times), times - times.astype("datetime64[D]"))
        found = find_times(self.frames.times, wanted)
        if (found < 0).any():
            has = np.unique(self.frames.times.astype("datetime64[h]").astype(int) % 24).tolist()
            raise ValueError(f"{self.frames.name} has nothing for {times[found < 0][0]:.13}: its hours are {has}")
        return self.frames.read(found)


def as_calendar(climatology: xr.Dataset) -> list[xr.Dataset]:
    """A WeatherBench 2 climatology [hour, dayofyear, ...] by the times of CALENDAR_YEAR, a piece for each hour."""
    pieces = []
    for hour in climatology.hour.values:
        piece = climatology.sel(hour=hour, drop=True).rename(dayofyear="time")
        piece = piece.assign_coords(time=_calendar_times(climatology.dayofyear.values, np.timedelta64(int(hour), "h")))
        piece.encoding = climatology.encoding
        pieces.append(piece)
    return pieces


def _calendar_times(days: np.ndarray, hours: np.ndarray | np.timedelta64) -> np.ndarray:
    """Times of CALENDAR_YEAR: days of the year, from 1 on, and hours (timedelta64) of them."""
    return np.datetime64(f"{CALENDAR_YEAR}-01-01", "ns") + (days - 1) * np.timedelta64(1, "D") + hours


def open_normals(archive: Archive, reference: Reference, mesh: Mesh) -> Calendar | None:
    """Opens the climatology that `prepare` put into an archive, for a model; None where there is none.

    Each process reads its boxes of the fields [hour, day, lat, lon] in SI units; only dynamic channels have any.
    """
    folder = storage.join(archive.path, CLIMATOLOGY)
    if storage.read_json(storage.open_folder(folder), "zarr.json") is None:
        return None
    channels, fields = reference.channel_set, []
    if any(channel.level_hpa is not None for channel in channels.dynamic):
        levels = storage.read_array(storage.join(folder, "level")).result().tolist()
    for channel in channels.dynamic:
        field = storage.open_array(storage.join(folder, channel.variable))
        fields.append(field if channel.level_hpa is None else field[:, :, levels.index(channel.level_hpa)])
    hours = storage.read_array(storage.join(folder, "hour")).result().tolist()

    def read_stored(indices: Int[np.ndarray, " b"]) -> Float[Array, "b n lat lon"]:
        shape = (len(indices), channels.size, *reference.grid.shape)

        def read(box: tuple[slice, ...]) -> np.ndarray:
            values = np.zeros([len(range(size)[part]) for part, size in zip(box, shape)], np.float32)
            reads = []
            for row, day, hour in zip(values, *np.divmod(indices[box[0]], len(hours))):
                reads += [(out, field[hour, day][box[2]].read()) for out, field in zip(row, fields[box[1]])]
            for out, future in reads:
                out[:] = future.result()
            return values

        return jax.make_array_from_callback(shape, sharding(mesh, "batch", "channel", "lat", "lon"), read)

    counted = archive.attributes["statistics_period"]
    period = tuple(counted or np.datetime_as_string(archive.times[[0, -1]], "D").tolist())
    times = _calendar_times(np.arange(1, fields[0].shape[1] + 1)[:, None], np.array(hours, "timedelta64[h]")).ravel()
    name, of = f"the climatology of {archive.path}", " of " + " to ".join(period) if counted else ""
    frames = Frames(name, name, times, reference, mesh, make_standardization(reference, mesh), read_stored)
    about = f"the archive's{of}, by hour of day and day of year over 61 days, as WeatherBench 2's"
    return Calendar(frames, about, period)
