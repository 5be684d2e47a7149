"""Makes shards of an archive from a source: reads, checks, packs, sums up, writes. Nothing else need be at hand."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Float, Int

from weathermixer.archive import storage
from weathermixer.archive.layout import pack
from weathermixer.archive.sampling import find_times, in_period
from weathermixer.archive.verify import checksums
from weathermixer.fields.variables import group_by_variable
from weathermixer.prepare.sizes import ArchivePlan
from weathermixer.prepare.statistics import MISSING, add_sums, check_fields, describe_faults, measure, no_sums
from weathermixer.prepare.workers import GO_ON, in_order
from weathermixer.prepare.writer import Journal
from weathermixer.sources.sources import Source

PIECE_BYTES = 2**19  # of float32 that is measured and packed at once: it and its copies stay in a core's cache
NEAR = np.timedelta64(24, "h")  # times so near to each other have fields that are alike


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Consecutive shards, and all that making them takes."""

    target: str
    recipe: str
    source: Source  # of their times and, before those, as many as pairs reach back
    plan: ArchivePlan
    shards: range
    first: int  # the archive's index of the source's first time
    scale: Float[np.ndarray, " channel"]
    offset: Float[np.ndarray, " channel"]
    shift: Float[np.ndarray, " channel"]
    row_weights: Float[np.ndarray, " lat"]
    counted: Bool[np.ndarray, " time"]
    back: Int[np.ndarray, " time"]  # how many times back the one 6 h earlier is, 0 where none is or one does not count
    # points that are missing at the archive's first time, of the variables that lack some then
    masks: dict[str, Bool[np.ndarray, "level lat lon"]]
    keep_faults: bool

    def times_of(self, shard: int) -> range:
        """The times of a shard, as indices in source."""
        part = self.plan.layout.times_of(shard)
        return range(part.start - self.first, part.stop - self.first)

    def describe(self, shard: int) -> str:
        """What a shard is made of, as a digest: times, those of them that have pairs, how many fit, packing, masks."""
        times = self.times_of(shard)
        hours = self.source.times[times.start : times.stop].astype("datetime64[h]").astype(np.int64)
        paired = self.back[times.start : times.stop] > 0
        numbers = [self.plan.layout.times_per_shard, *hours, *paired, *self.scale, *self.offset, *self.shift]
        masks = [self.masks[variable].tobytes() for variable in sorted(self.masks)]
        return hashlib.sha256(b"".join([np.array(numbers, np.float64).tobytes(), *masks])).hexdigest()


Entry = dict[str, np.ndarray]  # what the journal keeps of a shard
Earlier = dict[str, dict[int, np.ndarray]]  # of each variable, its last frames by time


def find_pairs(
    source: Source, lag: int, period: tuple[str, str] | None
) -> tuple[Bool[np.ndarray, " time"], Int[np.ndarray, " time"]]:
    """(times that count, how many times back the one `lag` steps earlier is or 0); ValueError where none counts."""
    times, here = source.times, np.arange(len(source.times))
    counted = np.ones(len(times), bool) if period is None else in_period(times, period)
    if not counted.any():
        raise ValueError(
            f"no time of the source lies in --statistics-period={','.join(period)}: it has {times[0]:.13} to "
            f"{times[-1]:.13}; choose other dates"
        )
    earlier = find_times(times, times - lag * source.step_hours * np.timedelta64(1, "h"))
    return counted, np.where((earlier >= 0) & counted & counted[earlier], here - earlier, 0)


def make_shards(task: Task) -> int:
    """Makes and writes the shards of a task, each marked in the journal once it is committed; returns their times.

    The next shard is made while one is written, and what comes next is read meanwhile.
    """
    store, journal = storage.open_array(storage.join(task.target, "fields"), write=True), Journal(task.target)
    earlier: Earlier = {variable: {} for variable in task.source.variables}
    pending = None
    with ThreadPoolExecutor(task.plan.reads) as pool:
        read = lambda block: (block[1].tolist(), task.source.read(block[1], variables=[block[0]]))  # noqa: E731
        blocks = in_order(pool, read, _list_blocks(task), ahead=task.plan.reads)
        for number in task.shards:
            frames, entry = _make_shard(task, task.times_of(number), blocks, earlier)
            entry["made_of"] = np.array(task.describe(number))
            _finish(journal, pending)
            if len(entry["faults"]) and not task.keep_faults:
                raise ValueError(describe_faults(entry["faults"].tolist(), task.target.removesuffix(".partial")))
            journal.check_recipe(task.recipe)
            pending = number, entry, store[task.plan.layout.times_of(number)].write(frames)
        _finish(journal, pending)
    return sum(len(task.times_of(number)) for number in task.shards)


def _finish(journal: Journal, pending: tuple[int, Entry, storage.WriteFutures] | None) -> None:
    """Waits until a shard is committed, then marks it as finished: never the other way round."""
    if pending is None:
        return
    number, entry, write = pending
    try:
        write.result()
    except Exception as error:
        raise ValueError(
            f"{journal.target} cannot be written: {error}\nmake room, or mend what is wrong: {GO_ON}"
        ) from None
    journal.write_entry(number, **entry)


def _list_blocks(task: Task) -> Iterator[tuple[str, np.ndarray]]:
    """What is read, in this order: of each shard one variable after another, of the first with what comes before."""
    before, step = np.arange(task.times_of(task.shards[0]).start), task.plan.times_per_block
    for number in task.shards:
        times = np.array(task.times_of(number))
        blocks = [times[start : start + step] for start in range(0, len(times), step)]
        yield from itertools.product(task.source.variables, [before] * (len(before) > 0) + blocks)
        before = before[:0]


def _make_shard(task: Task, times: range, blocks: Iterator, earlier: Earlier) -> tuple[np.ndarray, Entry]:
    """(frames as stored, sums, checksums, faults, counts) of the blocks that come next; keeps `earlier` up to date.

    The entry's `missing` counts, of each channel, values that are missing, and times at which other points are than at
    the first.
    """
    frames = np.empty((len(times), len(task.source.channels), *task.source.grid.shape), task.plan.layout.dtype)
    sums, faults, missing = no_sums(frames.shape[1]), [], np.zeros((2, frames.shape[1]), np.int64)
    for variable, channels in group_by_variable(task.source.channels).items():
        some, last = slice(channels[0], channels[-1] + 1), earlier[variable]
        while times.stop - 1 not in last:
            for time, fields in zip(*next(blocks)):
                if time >= times.start:
                    out = frames[time - times.start]
                    part, found, changed = _make_fields(task, variable, fields, last, some, time, out)
                    faults += found
                    missing[:, some] += np.stack([part[MISSING].astype(np.int64), changed])
                    if task.counted[time]:
                        sums[:, some] = add_sums(sums[:, some], part)
                last[time] = fields
                last.pop(time - task.plan.lag, None)
            if task.plan.times_per_block > task.plan.lag:  # a view would keep all of its block
                last.update({time: fields.copy() for time, fields in last.items()})
    entry = {"sums": sums, "checksums": checksums(frames), "faults": np.array(faults, np.str_), "missing": missing}
    return frames, entry


def _make_fields(
    task: Task, variable: str, fields: np.ndarray, last: dict[int, np.ndarray], some: slice, time: int, out: np.ndarray
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """The fields [channel, lat, lon] of one variable at one time: fills out[some], returns sums and check_fields'."""
    pair, before = last.get(time - task.back[time]), last.get(time - 1)
    channels, lat, lon = fields.shape
    sums, unpackable = no_sums(channels), None
    rows = min(lat, max(1, PIECE_BYTES // (4 * lon)))
    group = max(1, PIECE_BYTES // (4 * lon * rows)) if rows == lat else 1
    for channel in range(0, channels, group):
        part = slice(channel, min(channel + group, channels))
        here = slice(some.start + part.start, some.start + part.stop)
        for row in range(0, lat, rows):
            piece = part, slice(row, row + rows)
            weights = {"shift": task.shift[here], "row_weights": task.row_weights[piece[1]]}
            found = measure(fields[piece], None if pair is None else pair[piece], **weights)
            sums[:, part] = add_sums(sums[:, part], found)
            packed, odd = pack(fields[piece][None], task.scale[here], task.offset[here], task.plan.layout.dtype)
            if odd is None:
                out[here, piece[1]] = packed[0]
            else:
                unpackable = task.source.channels[here][odd[0]].name, odd[1]
    times = task.source.times
    if time and times[time] - times[time - 1] > NEAR:
        before = None
    others = {"masks": task.masks.get(variable), "before": before}
    faults, changed = check_fields(fields, times[time], task.source.channels[some], sums, **others)
    if unpackable and (task.keep_faults or not faults):
        what = f"{unpackable[0]} at {times[time]}: value {unpackable[1]}"
        raise ValueError(f"{what} cannot be stored as {task.plan.layout.dtype}: prepare with float16 or float32")
    return sums, faults, changed
