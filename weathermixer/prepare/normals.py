"""Climatology by hour of day and day of year, as WeatherBench 2 defines it, from an archive that is being made.

    c[hour, d] = sum_{years, k = -30..30} w_k x[year, hour, d + k] / sum_{years, k} w_k    w_k = 1 - |k| / 30

Days run in a circle of 366; in years of 365 days, the 365th stands for the 366th (compute_rolling_stat in WeatherBench
2's utils, with its window of 61 days). Times that are missing are left out of both sums. The group `climatology` has
WeatherBench 2's names and dimensions: a variable is [hour, dayofyear, level, latitude, longitude].
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from weathermixer.archive import layout, storage
from weathermixer.archive.archive import CLIMATOLOGY
from weathermixer.archive.progress import Progress
from weathermixer.archive.sampling import days_of_year
from weathermixer.fields.grid import Grid
from weathermixer.fields.variables import Channel, group_by_variable
from weathermixer.prepare.journal import Journal
from weathermixer.prepare.workers import Workers
from weathermixer.sources.sources import Source

DAYS = 366
WINDOW_DAYS = 61
YEARS_NEEDED = 10  # of fewer years, a window's mean is more weather than climate; it can be asked for all the same
BATCH_BYTES = 64 * 2**20  # of times read at once


def window_weights(days: int = WINDOW_DAYS) -> Float[np.ndarray, " window"]:
    """Weights that fall linearly from the middle to zero at both ends, with mean one."""
    half = np.linspace(0, 1, days // 2 + 1)
    weights = np.concatenate([half, half[-2::-1]])
    return weights / weights.mean()


def smoothing_matrix(weights: Float[np.ndarray, " window"]) -> Float[np.ndarray, "day day"]:
    """The matrix that sums over a window of days on the circle: [d, (d + k) % 366] = w_k."""
    matrix = np.zeros((DAYS, DAYS))
    offsets = np.arange(len(weights)) - len(weights) // 2
    for day in range(DAYS):
        np.add.at(matrix[day], (day + offsets) % DAYS, weights)
    return matrix


def is_long_enough(times: np.ndarray) -> bool:
    """Whether a record spans YEARS_NEEDED years."""
    return bool(len(times) and times[-1] - times[0] >= np.timedelta64(int((YEARS_NEEDED - 0.1) * 365.25), "D"))


@dataclasses.dataclass(frozen=True, eq=False)
class Contribution:
    """Which times are summed for one hour of the day: entry n adds the time `index[n]` to day `day[n]` (from 0)."""

    hour: int
    index: Int[np.ndarray, " n"]
    day: Int[np.ndarray, " n"]


def choose_terms(
    times: np.ndarray, counted: Bool[np.ndarray, " time"], wanted: bool | None
) -> tuple[list[Contribution], str]:
    """(the sums' terms, what they are of, or why there are none). None: where the record is long enough for them.

    Raises ValueError where a climatology is wanted, True, and cannot be made.
    """
    if wanted is None and not is_long_enough(times[counted]):
        return [], f"none: its times span less than {YEARS_NEEDED} years"
    if wanted is False:
        return [], "none: not asked for"
    try:
        return contributions(times, counted), f"by hour and day of the year, of {counted.sum()} times"
    except ValueError as error:
        if wanted:
            raise ValueError(f"no climatology: {error} (--climatology=no)") from None
        return [], f"none: {error}"


def contributions(times: np.ndarray, counted: Bool[np.ndarray, " time"]) -> list[Contribution]:
    """The sums' terms; ValueError where some day's whole window is empty, as in a record of less than a year."""
    hours = (times - times.astype("datetime64[D]")) // np.timedelta64(1, "h")
    days = days_of_year(times)
    years = times.astype("datetime64[Y]").astype(np.int64) + 1970
    leap = (years % 4 == 0) & ((years % 100 != 0) | (years % 400 == 0))
    matrix = smoothing_matrix(window_weights())
    found = []
    for hour in np.unique(hours[counted]):
        index = np.flatnonzero(counted & (hours == hour))
        again = index[(days[index] == 365) & ~leap[index]]
        part = Contribution(
            int(hour), np.concatenate([index, again]), np.concatenate([days[index], again * 0 + DAYS]) - 1
        )
        empty = np.flatnonzero(matrix @ np.bincount(part.day, minlength=DAYS) == 0)
        if len(empty):
            raise ValueError(
                f"at {hour:02d} UTC, day {empty[0] + 1} of the year has no time in its window of {WINDOW_DAYS} days: "
                "the record is too short, or lacks a season"
            )
        found.append(part)
    return found


def climatology_members(channels: Sequence[Channel]) -> list[str]:
    """Paths of the group and its arrays, for the archive's list of members."""
    names = ["hour", "dayofyear", "latitude", "longitude", *group_by_variable(channels)]
    names += ["level"] * any(channel.level_hpa is not None for channel in channels)
    return [CLIMATOLOGY, *(f"{CLIMATOLOGY}/{name}" for name in names)]


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """One hour, a chunk's channels and rows, and all that making their climatology takes.

    `places` [channel] are each channel's variable and place among the levels, None at the surface. scale, offset and
    center are of these channels; sums are of deviations from center, a physical value near each channel's mean.
    """

    target: str
    recipe: str
    hour: int
    terms: Contribution
    some: slice
    rows: slice
    places: list[tuple[str, int | None]]
    scale: Float[np.ndarray, " channel"]
    offset: Float[np.ndarray, " channel"]
    center: Float[np.ndarray, " channel"]

    @property
    def files(self) -> set[str]:
        """The shards that it makes, below the group."""
        band = self.rows.start // (self.rows.stop - self.rows.start)
        levels = ((variable, "" if level is None else f"{level}/") for variable, level in self.places)
        return {f"{variable}/c/{self.hour}/0/{level}{band}/0" for variable, level in levels}


def write_climatology(
    target: str,
    recipe: str,
    terms: Sequence[Contribution],
    source: Source,
    *,
    scale: Float[np.ndarray, " channel"],
    offset: Float[np.ndarray, " channel"],
    center: Float[np.ndarray, " channel"],
    workers: Workers,
    memory_bytes: int,
) -> None:
    """Writes the group `climatology` of an archive whose fields are complete, chunk by chunk: each is read once.

    Goes on where it was stopped. So many workers are at it as memory_bytes, that of all, suffices for.
    """
    store = storage.open_array(storage.join(target, "fields"))
    _, group, band, lon = store.chunk_layout.read_chunk.shape
    _, count, lat, _ = store.shape
    places = _create_group(target, terms, source.grid, source.channels, band)
    blocks = []
    for hour, channel, row in itertools.product(range(len(terms)), range(0, count, group), range(0, lat, band)):
        some, rows = slice(channel, min(channel + group, count)), slice(row, row + band)
        of_some = {"scale": scale[some], "offset": offset[some], "center": center[some]}
        blocks.append(Block(target, recipe, hour, terms[hour], some, rows, places=places[some], **of_some))
    there = {key.decode() for key in storage.open_folder(storage.join(target, CLIMATOLOGY)).list().result()}
    missing = [block for block in blocks if not block.files <= there]
    # a year of a chunk four times over: summed, smoothed, cut and encoded
    most = max(1, memory_bytes // (4 * DAYS * group * band * lon * 4 + 2 * BATCH_BYTES))
    with Progress("climatology", total=len(blocks), done=len(blocks) - len(missing), unit="blocks") as progress:
        for _ in workers.map(_make_block, missing, ahead=most - 1):
            progress.update(1)


def _make_block(block: Block) -> None:
    store = storage.open_array(storage.join(block.target, "fields"))
    matrix = smoothing_matrix(window_weights()).astype(np.float32)
    scale, offset, center = (values[:, None, None] for values in (block.scale, block.offset, block.center))
    stored_center = ((center - offset) / scale).astype(np.float32)
    total, weight = _sum_days(store, block.terms, block.some, block.rows, stored_center)
    mean = (matrix @ total.reshape(DAYS, -1)).reshape(total.shape)
    del total
    with np.errstate(invalid="ignore"):  # NaN where all values are missing
        mean /= (matrix @ weight.reshape(DAYS, -1)).reshape(weight.shape)
    mean *= scale.astype(np.float32)
    mean += center.astype(np.float32)
    Journal(block.target).check_recipe(block.recipe)
    writes = []
    for position, (variable, level) in enumerate(block.places):
        output = storage.open_array(storage.join(block.target, CLIMATOLOGY, variable), write=True)
        output = output if level is None else output[:, :, level]
        writes.append(output[block.hour, :, block.rows].write(mean[:, position]))
    for write in writes:
        write.result()


def _sum_days(store: storage.Array, terms: Contribution, some: slice, rows: slice, center: np.ndarray):
    """(sum of stored values less `center`, how many) for each day of the year; counts are per value where some lack."""
    shape = (DAYS, some.stop - some.start, rows.stop - rows.start, store.shape[3])
    total, weight = np.zeros(shape, np.float32), np.zeros((DAYS, 1, 1, 1), np.float32)
    batch = int(np.clip(BATCH_BYTES // (4 * np.prod(shape[1:])), 1, 256))
    for start in range(0, len(terms.index), batch):
        part = slice(start, start + batch)
        block = store[terms.index[part], some, rows].read().result().astype(np.float32) - center
        for day, values in zip(terms.day[part], block):
            if np.isfinite(values).all():
                total[day] += values
                weight[day] += 1
                continue
            if weight.shape != shape:
                weight = np.broadcast_to(weight, shape).copy()
            finite = np.isfinite(values)
            total[day] += np.where(finite, values, 0)
            weight[day] += finite
    return total, weight


def _create_group(
    target: str, terms: Sequence[Contribution], grid: Grid, channels: Sequence[Channel], band: int
) -> list[tuple[str, int | None]]:
    """Writes metadata and coordinates; returns each channel's variable and its place among the levels, if any."""
    folder = storage.join(target, CLIMATOLOGY)
    levels = sorted({channel.level_hpa for channel in channels if channel.level_hpa is not None})
    coordinates = {
        "hour": np.array([term.hour for term in terms], np.int64),
        "dayofyear": np.arange(1, DAYS + 1),
        "latitude": np.asarray(grid.latitude, np.float64),
        "longitude": np.asarray(grid.longitude, np.float64),
    }
    if levels:
        coordinates["level"] = np.array(levels, np.int64)
    for name, values in coordinates.items():
        storage.write_array(storage.join(folder, name), values, dimensions=[name])
    lat, lon = grid.shape
    for variable, indices in group_by_variable(channels).items():
        upper = channels[indices[0]].level_hpa is not None
        count, one, level = ([len(levels)], [1], ["level"]) if upper else ([], [], [])
        shape, shard, chunk = (
            [len(terms), DAYS, *count, lat, lon],
            [1, DAYS, *one, band, lon],
            [1, 1, *one, band, lon],
        )
        # days are read singly, and written a year at a time; NaN where a level is not there
        metadata = layout.sharded_metadata(shape, shard, chunk, "float32", compressor="zstd")
        metadata["fill_value"] = "NaN"
        metadata["dimension_names"] = ["hour", "dayofyear", *level, "latitude", "longitude"]
        metadata["attributes"] = {"units": channels[indices[0]].units}
        storage.create_array(storage.join(folder, variable), metadata)
    document = {"zarr_format": 3, "node_type": "group", "attributes": {"window_days": WINDOW_DAYS}}
    storage.write_json(storage.open_folder(folder), "zarr.json", document)
    return [(c.variable, None if c.level_hpa is None else levels.index(c.level_hpa)) for c in channels]
