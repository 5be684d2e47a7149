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
from scipy import ndimage

from weathermixer.archive import layout, storage
from weathermixer.archive.archive import CLIMATOLOGY
from weathermixer.archive.progress import make_progress
from weathermixer.archive.sampling import days_of_year
from weathermixer.fields.grid import Grid
from weathermixer.fields.variables import Channel, group_by_variable
from weathermixer.prepare.shards import Task
from weathermixer.prepare.workers import Workers
from weathermixer.prepare.writer import Journal

DAYS = 366
WINDOW_DAYS = 61
YEARS_NEEDED = 10  # of fewer years, a window's mean is more weather than climate; it can be asked for all the same
BATCH_BYTES = 64 * 2**20  # of times read at once

Terms = tuple[int, Int[np.ndarray, " n"], Int[np.ndarray, " n"]]  # an hour's: hour, indices of times, days from 0


def smooth(values: Float[np.ndarray, "day ..."]) -> Float[np.ndarray, "day ..."]:
    """Sums over the window, on the circle of days, by weights with mean one that fall from the middle to zero."""
    weights = 1 - np.abs(np.linspace(-1, 1, WINDOW_DAYS))
    return ndimage.convolve1d(values, weights / weights.mean(), axis=0, mode="wrap")


def choose_terms(times: np.ndarray, counted: Bool[np.ndarray, " time"], wanted: bool | None) -> tuple[list[Terms], str]:
    """(the sums' terms, what they are of, or why there are none). None: where the record is long enough for them.

    Raises ValueError where a climatology is wanted, True, and cannot be made: some day's whole window is empty.
    """
    if wanted is False:
        return [], "none: not asked for"
    if wanted is None and np.ptp(times[counted]) < np.timedelta64(int((YEARS_NEEDED - 0.1) * 365.25), "D"):
        return [], f"none: its times span less than {YEARS_NEEDED} years"
    hours = (times - times.astype("datetime64[D]")) // np.timedelta64(1, "h")
    days = days_of_year(times)
    last = days_of_year(times.astype("datetime64[Y]") + np.timedelta64(12, "M") - np.timedelta64(1, "D"))
    found = []
    for hour in np.unique(hours[counted]):
        index = np.flatnonzero(counted & (hours == hour))
        again = index[(days[index] == 365) & (last[index] == 365)]
        day = np.concatenate([days[index], again * 0 + DAYS]) - 1
        empty = np.flatnonzero(smooth(np.bincount(day, minlength=DAYS).astype(float)) == 0)
        if len(empty):
            problem = (
                f"at {hour:02d} UTC, day {empty[0] + 1} of the year has no time in its window of {WINDOW_DAYS} days: "
                "the record is too short, or lacks a season"
            )
            if wanted:
                raise ValueError(f"no climatology: {problem} (--climatology=no)")
            return [], f"none: {problem}"
        found.append((int(hour), np.concatenate([index, again]), day))
    return found, f"by hour and day of the year, of {counted.sum()} times"


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """One hour, a chunk's channels and rows, and all that making their climatology takes."""

    target: str
    recipe: str
    hour: int
    terms: Terms
    some: slice
    rows: slice
    places: list[tuple[str, int | None]]  # each channel's variable and place among the levels, None at the surface
    scale: Float[np.ndarray, "channel 1 1"]
    offset: Float[np.ndarray, "channel 1 1"]
    center: Float[np.ndarray, "channel 1 1"]  # a physical value near each channel's mean: sums are of deviations

    @property
    def files(self) -> set[str]:
        """The shards that it makes, below the group."""
        band = self.rows.start // (self.rows.stop - self.rows.start)
        levels = ((variable, "" if level is None else f"{level}/") for variable, level in self.places)
        return {f"{variable}/c/{self.hour}/0/{level}{band}/0" for variable, level in levels}


def write_climatology(whole: Task, terms: Sequence[Terms], workers: Workers) -> None:
    """Writes the group `climatology` of an archive whose fields are complete, chunk by chunk: each is read once.

    Goes on where it was stopped. So many workers are at it as the memory of all suffices for.
    """
    store = storage.open_array(storage.join(whole.target, "fields"))
    _, group, band, lon = store.chunk_layout.read_chunk.shape
    _, count, lat, _ = store.shape
    places = _create_group(whole.target, [hour for hour, _, _ in terms], whole.source.grid, whole.source.channels, band)
    blocks = []
    for hour, channel, row in itertools.product(range(len(terms)), range(0, count, group), range(0, lat, band)):
        some, rows = slice(channel, min(channel + group, count)), slice(row, row + band)
        packing = (values[some, None, None] for values in (whole.scale, whole.offset, whole.shift))
        blocks.append(Block(whole.target, whole.recipe, hour, terms[hour], some, rows, places[some], *packing))
    there = {key.decode() for key in storage.open_folder(storage.join(whole.target, CLIMATOLOGY)).list().result()}
    missing = [block for block in blocks if not block.files <= there]
    # a year of a chunk four times over: summed and counted, and both smoothed
    each = 4 * DAYS * group * band * lon * 4 + 2 * BATCH_BYTES
    most = max(1, workers.count * whole.plan.worker_bytes // each)
    with make_progress("climatology", total=len(blocks), done=len(blocks) - len(missing), unit="blocks") as progress:
        for _ in workers.map(_make_block, missing, ahead=most - 1):
            progress.update(1)


def _make_block(block: Block) -> None:
    store = storage.open_array(storage.join(block.target, "fields"))[:, block.some, block.rows]
    center = ((block.center - block.offset) / block.scale).astype(np.float32)
    total, count = (np.zeros((DAYS, *store.shape[1:]), np.float32) for _ in range(2))
    _, index, days = block.terms
    batch = int(np.clip(BATCH_BYTES // total[0].nbytes, 1, 256))
    for start in range(0, len(index), batch):
        part = slice(start, start + batch)
        for day, values in zip(days[part], store[index[part]].read().result().astype(np.float32) - center):
            finite = np.isfinite(values)
            total[day] += np.where(finite, values, 0)
            count[day] += finite
    mean = smooth(total)
    with np.errstate(invalid="ignore"):  # NaN where all values are missing
        mean /= smooth(count)
    mean *= block.scale.astype(np.float32)
    mean += block.center.astype(np.float32)
    Journal(block.target).check_recipe(block.recipe)
    writes = []
    for position, (variable, level) in enumerate(block.places):
        output = storage.open_array(storage.join(block.target, CLIMATOLOGY, variable), write=True)
        output = output if level is None else output[:, :, level]
        writes.append(output[block.hour, :, block.rows].write(mean[:, position]))
    for write in writes:
        write.result()


def _create_group(
    target: str, hours: list[int], grid: Grid, channels: Sequence[Channel], band: int
) -> list[tuple[str, int | None]]:
    """Writes metadata and coordinates; returns each channel's variable and its place among the levels, if any."""
    folder = storage.join(target, CLIMATOLOGY)
    levels = sorted({channel.level_hpa for channel in channels if channel.level_hpa is not None})
    coordinates = {"hour": hours, "dayofyear": range(1, DAYS + 1), "level": levels}
    coordinates |= {"latitude": grid.latitude, "longitude": grid.longitude}
    for name, values in coordinates.items():
        if len(values):
            storage.write_array(storage.join(folder, name), np.asarray(values), dimensions=[name])
    lat, lon = grid.shape
    for variable, indices in group_by_variable(channels).items():
        upper = channels[indices[0]].level_hpa is not None
        one = [1] * upper
        shape = [len(hours), DAYS, *[len(levels)] * upper, lat, lon]
        # days are read singly, and written a year at a time; NaN where a level is not there
        shard, chunk = [1, DAYS, *one, band, lon], [1, 1, *one, band, lon]
        about = {
            "fill_value": "NaN",
            "dimension_names": ["hour", "dayofyear", *["level"] * upper, "latitude", "longitude"],
            "attributes": {"units": channels[indices[0]].units},
        }
        codecs = layout.sharding_codecs(chunk, "float32", compressor="zstd")
        metadata = storage.array_metadata(shape, shard, "float32", codecs, **about)
        storage.create_array(storage.join(folder, variable), metadata)
    document = {"zarr_format": 3, "node_type": "group", "attributes": {"window_days": WINDOW_DAYS}}
    storage.write_json(storage.open_folder(folder), "zarr.json", document)
    return [(c.variable, None if c.level_hpa is None else levels.index(c.level_hpa)) for c in channels]
