"""The climatology that forecasts are measured against: the mean state for an hour of the day and a day of the year.

It is held as a few coefficient fields per hour instead of a field per hour and day (1464 of them: 420 GB at 0.25
degrees), so it stays on the mesh, is cut like any field, and is fitted in one pass over the training period. An archive
may bring those fields itself, in WeatherBench 2's definition (`Normals`): they are read for the times that are asked.
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
from weathermixer.archive.sampling import days_of_year, find_times, in_period
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel.mesh import sharding, spec, use_mesh

DAYS_PER_YEAR = 365.2425
# With less than two years, a seasonal cycle cannot be told from the weather of those seasons
YEARS_FOR_SEASONS = 2
CALENDAR_YEAR = 2020  # it has 366 days
# Four annual harmonics resolve about 45 days, as the 61-day window of WeatherBench 2's climatology does
HARMONICS = 4


@functools.partial(jax.tree_util.register_dataclass, data_fields=["coefficients"], meta_fields=["hours", "harmonics"])
@dataclasses.dataclass(frozen=True)
class Climatology:
    """Standardized mean state: coefficients [term, n, lat, lon] of the terms of `climatology_terms`."""

    coefficients: Float[Array, "term n lat lon"]
    hours: tuple[int, ...]
    harmonics: int

    @property
    def description(self) -> str:
        seasons = f" with {self.harmonics} annual harmonics" if self.harmonics else ""
        return f"mean of the training period by hour of day{seasons}"

    def at(self, times: np.ndarray, mesh: Mesh) -> Float[Array, "b n lat lon"]:
        """The standardized climatology at these times, a global array cut like a batch of fields."""
        terms = climatology_terms(times, hours=self.hours, harmonics=self.harmonics)
        return _combine(_on_mesh(terms, mesh), self.coefficients)


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
    frames: Frames,
    *,
    indices: Int[np.ndarray, " time"],
    batch_size: int,
    progress: bool = False,
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
        for first in tqdm(range(0, len(indices), batch_size), desc="climatology", disable=not progress, leave=False):
            chosen = np.arange(first, first + batch_size) % len(indices)
            weights = terms[chosen] * (np.arange(first, first + batch_size) < len(indices))[:, None]
            total = _accumulate(total, _on_mesh(weights, frames.mesh), frames.read(indices[chosen]))
        return Climatology(_solve(np.linalg.inv(gram).astype(np.float32), total), hours, harmonics)


def _on_mesh(terms: Float[np.ndarray, "b term"], mesh: Mesh) -> Float[Array, "b term"]:
    terms = terms.astype(np.float32)
    return jax.make_array_from_callback(terms.shape, sharding(mesh, "batch", None), lambda box: terms[box])


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
    """A climatology by day and hour that another data set is: frames of the days of the year CALENDAR_YEAR."""

    frames: Frames

    @property
    def description(self) -> str:
        return f"{self.frames.name}, by hour of day and day of year"

    def at(self, times: np.ndarray, mesh: Mesh) -> Float[Array, "b n lat lon"]:
        """The standardized climatology at these times; ValueError for a day or an hour that it does not have."""
        hours = times - times.astype("datetime64[D]")
        days = (days_of_year(times) - 1) * np.timedelta64(1, "D")
        found = find_times(self.frames.times, np.datetime64(f"{CALENDAR_YEAR}-01-01", "ns") + days + hours)
        if (found < 0).any():
            raise ValueError(f"the climatology {self.frames.name} has nothing for {times[found < 0][0]:.13}")
        return self.frames.read(found)


def as_calendar(climatology: xr.Dataset) -> list[xr.Dataset]:
    """A WeatherBench 2 climatology [hour, dayofyear, ...] by the times of CALENDAR_YEAR, a piece for each hour."""
    start, day = np.datetime64(f"{CALENDAR_YEAR}-01-01", "ns"), np.timedelta64(1, "D")
    pieces = []
    for hour in climatology.hour.values:
        times = start + (climatology.dayofyear.values - 1) * day + int(hour) * np.timedelta64(1, "h")
        piece = climatology.sel(hour=hour, drop=True).rename(dayofyear="time").assign_coords(time=times)
        piece.encoding = climatology.encoding
        pieces.append(piece)
    return pieces


@dataclasses.dataclass(frozen=True, eq=False)
class Normals:
    """WeatherBench 2's climatology of an archive; fields [hour, day, lat, lon] in SI units, one per dynamic channel.

    `period` is the first and last date of the times that it is the mean of; None: all of the archive's.
    """

    channel_set: ChannelSet
    fields: tuple[storage.Array, ...]
    hours: tuple[int, ...]
    period: tuple[str, str] | None
    mean: Float[np.ndarray, " channel"]
    std: Float[np.ndarray, " channel"]

    @property
    def description(self) -> str:
        of = " of " + " to ".join(self.period) if self.period else ""
        return f"the archive's{of}, by hour of day and day of year over 61 days, as WeatherBench 2's"

    def holds_any(self, times: np.ndarray) -> bool:
        """Whether some of these times of the archive are among those that it is the mean of."""
        return self.period is None or bool(in_period(times, self.period).any())

    def at(self, times: np.ndarray, mesh: Mesh) -> Float[Array, "b n lat lon"]:
        """The standardized climatology at these times, cut like a batch of fields; static and padding channels zero.

        Raises ValueError for a time whose hour of day it does not have.
        """
        hours = (times - times.astype("datetime64[D]")) // np.timedelta64(1, "h")
        if unknown := sorted(set(hours.tolist()) - set(self.hours)):
            raise ValueError(f"the archive's climatology has the hours {list(self.hours)}, not {unknown}")
        entries = list(zip(np.searchsorted(self.hours, hours).tolist(), (days_of_year(times) - 1).tolist()))

        def read(box: tuple[slice, ...]) -> np.ndarray:
            rows, channels, lats, lons = (range(size)[part] for part, size in zip(box, shape))
            values = np.zeros((len(rows), len(channels), len(lats), len(lons)), np.float32)
            wanted = [n for n in channels if n < len(self.fields)]
            reads = [[self.fields[n][entries[row]][lats.start : lats.stop].read() for n in wanted] for row in rows]
            for row, futures in zip(values, reads):
                for n, field, future in zip(wanted, row, futures):
                    field[:] = (future.result() - self.mean[n]) / self.std[n]
            return values

        shape = (len(times), self.channel_set.size, *self.fields[0].shape[2:])
        return jax.make_array_from_callback(shape, sharding(mesh, "batch", "channel", "lat", "lon"), read)


def open_normals(archive: Archive, reference: Reference) -> Normals | None:
    """Opens the climatology that `prepare` put into an archive, for a model; None where there is none."""
    channel_set = reference.channel_set
    folder = storage.join(archive.path, CLIMATOLOGY)
    if storage.read_json(storage.open_folder(folder), "zarr.json") is None:
        return None
    levels = None
    if any(channel.level_hpa is not None for channel in channel_set.dynamic):
        levels = storage.read_array(storage.join(folder, "level")).result().tolist()
    fields = []
    for channel in channel_set.dynamic:
        field = storage.open_array(storage.join(folder, channel.variable))
        fields.append(field if channel.level_hpa is None else field[:, :, levels.index(channel.level_hpa)])
    return Normals(
        channel_set=channel_set,
        fields=tuple(fields),
        hours=tuple(storage.read_array(storage.join(folder, "hour")).result().tolist()),
        period=archive.attributes["statistics_period"] and tuple(archive.attributes["statistics_period"]),
        mean=reference.mean,
        std=reference.std,
    )
