"""Prepares an archive from a source in one pass: reads, checks, packs, writes whole shards, gathers statistics.

Shards are made one after another; the variables of a shard are read by several threads while the one before is written.
What is finished is in a journal, so a prepare that was stopped in any way goes on where it was, and ends the same.
"""

import dataclasses
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorstore as ts
from jaxtyping import Bool, Float, Int

from weathermixer.data import storage
from weathermixer.data.archive import Archive, create_archive, open_archive, publish, working_path, write_statistics
from weathermixer.data.checks import check_frames, checksums, describe_faults, digest_archive
from weathermixer.data.journal import Journal, remove_journal
from weathermixer.data.packing import UnpackableError, choose_packing, pack
from weathermixer.data.planning import Plan, make_plan
from weathermixer.data.progress import Progress
from weathermixer.data.sources import Source
from weathermixer.data.statistics import (
    Partial,
    compute_partial,
    concatenate_partials,
    flatten_partial,
    make_statistics,
    merge_partials,
    no_partial,
    unflatten_partial,
)
from weathermixer.grid import area_weights
from weathermixer.variables import group_by_variable

SAMPLE_TIMES = 16  # evenly over the record, from which scale and offset are chosen


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """What making a shard needs. partner [time] is the index of the time 6 h earlier, -1 where there is none."""

    source: Source
    plan: Plan
    scale: Float[np.ndarray, " channel"]
    offset: Float[np.ndarray, " channel"]
    shift: Float[np.ndarray, " channel"]
    row_weights: Float[np.ndarray, " lat"]
    counted: Bool[np.ndarray, " time"]
    partner: Int[np.ndarray, " time"]
    lag: int


@dataclasses.dataclass(frozen=True, eq=False)
class Shard:
    """A shard that is ready to be written: frames as stored, statistics, checksums [time, channel], faults found."""

    frames: np.ndarray
    partial: Partial
    checksums: Int[np.ndarray, "time channel"]
    faults: list[str]
    tails: dict[str, np.ndarray]


def prepare(
    source: Source,
    path: str | os.PathLike,
    *,
    dtype: str = "float16",
    domain: int = 1,
    tensor: int = 1,
    times_per_shard: int | None = None,
    statistics_period: tuple[str, str] | None = None,
    area_weighted: bool = False,
    keep_faults: bool = False,
    threads: int | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> Archive:
    """Makes an archive at `path`, or goes on with one that was begun there with the same options.

    Args:
      dtype: float16, int16 or float32, as stored (see `packing`).
      domain, tensor: the largest mesh that is to read just its own bytes; inner chunks follow from it.
      times_per_shard: times in one file; None: what `make_plan` finds.
      statistics_period: first and last date of the times that count in the statistics; None: all.
      area_weighted: whether the statistics weigh values by their cells' area.
      keep_faults: keeps missing, infinite and constant fields instead of stopping; they are counted and named.
      threads: variables read at once; None: one for each core, at most 8.
      attributes: more attributes for the archive.

    Raises ValueError naming time and variable where the source cannot be read, is faulty, or cannot be stored. Nothing
    is published then, and the same call goes on with the shard at fault.
    """
    path = os.fspath(path)
    plan = make_plan(
        source, dtype=dtype, domain=domain, tensor=tensor, times_per_shard=times_per_shard, threads=threads
    )
    journal = Journal(working_path(path))
    options = {"statistics_period": statistics_period, "area_weighted": area_weighted, "keep_faults": keep_faults}
    description = plan.describe(source) | options
    recipe = journal.open_recipe(description) or _make_recipe(journal, source, plan, description)
    scale, offset, shift = (np.array(recipe[name]) for name in ("scale", "offset", "shift"))
    store = create_archive(
        path,
        times=source.times,
        grid=source.grid,
        channels=source.channels,
        static=source.static,
        scale=scale,
        offset=offset,
        dtype=dtype,
        domain=domain,
        tensor=tensor,
        times_per_shard=plan.times_per_shard,
        attributes=_describe_source(source) | options | dict(attributes or {}),
    )
    counted, partner, lag = find_pairs(source, statistics_period)
    row_weights = area_weights(source.grid.latitude) if area_weighted else np.ones(source.grid.shape[0])
    job = Job(source, plan, scale, offset, shift, row_weights, counted, partner, lag)
    _write_shards(job, store, journal, path, keep_faults=keep_faults)
    entries = [journal.read_entry(shard) for shard in range(plan.shards)]
    partial = no_partial(len(source.channels))
    for entry in entries:
        partial = merge_partials(partial, unflatten_partial(entry["partial"]))
    statistics = make_statistics(partial)
    write_statistics(path, statistics)
    sums = np.concatenate([entry["checksums"] for entry in entries])
    target = working_path(path)
    storage.write_array(storage.join(target, "checksum"), sums, dimensions=["time", "channel"])
    faults = [str(fault) for entry in entries for fault in entry["faults"]]
    digest = digest_archive(target, sums)
    publish(path, attributes={"checksum": digest, "faults": faults, "tendency_hours": lag * source.step_hours})
    remove_journal(path)
    return open_archive(path)


def find_pairs(
    source: Source, period: tuple[str, str] | None
) -> tuple[Bool[np.ndarray, " time"], Int[np.ndarray, " time"], int]:
    """(times that count, index of the time 6 h earlier or -1, how many times back that can be).

    Where the source's step does not divide 6 h, one step stands for them. ValueError where no time lies in the period.
    """
    times, step = source.times, source.step_hours
    counted = np.ones(len(times), bool)
    if period is not None:
        first, last = (np.datetime64(date, "D") for date in period)
        days = times.astype("datetime64[D]")
        counted = (days >= first) & (days <= last)
        if not counted.any():
            raise ValueError(f"no time lies in the statistics' period {period}; there are {times[0]} ... {times[-1]}")
    lag = 6 // step if 6 % step == 0 else 1
    earlier = times - lag * step * np.timedelta64(1, "h")
    index = np.minimum(np.searchsorted(times, earlier), len(times) - 1)
    partner = np.where((times[index] == earlier) & counted & counted[index], index, -1)
    return counted, partner, lag


def _make_recipe(journal: Journal, source: Source, plan: Plan, description: dict[str, Any]) -> dict[str, Any]:
    """Chooses scale and offset from a sample, variable by variable, and keeps them in the journal."""
    scale, offset, shift = (np.zeros(len(source.channels)) for _ in range(3))
    times = np.unique(np.linspace(0, len(source.times) - 1, SAMPLE_TIMES).round().astype(int))
    for variable, channels in group_by_variable(source.channels).items():
        sample = np.concatenate([source.read([time], variables=[variable]) for time in times])
        scale[channels], offset[channels] = choose_packing(sample, plan.dtype)
        means = np.where(np.isfinite(sample), sample, np.nan).mean(axis=(0, 2, 3), where=np.isfinite(sample))
        shift[channels] = np.nan_to_num(means)
    values = {"scale": scale.tolist(), "offset": offset.tolist(), "shift": shift.tolist()}
    return journal.write_recipe(description, **values)


def _describe_source(source: Source) -> dict[str, Any]:
    return {
        "source": source.name,
        "source_attributes": source.attributes,
        "step_hours": source.step_hours,
        "missing_times": [str(time.astype("datetime64[h]")) for time in source.missing_times],
        "units": [channel.units for channel in source.channels],
    }


def _write_shards(job: Job, store: ts.TensorStore, journal: Journal, path: str, *, keep_faults: bool) -> None:
    plan, times = job.plan, len(job.source.times)
    finished = journal.finished()
    done = sum(len(range(times)[plan.times_of(shard)]) for shard in finished)
    tails: dict[str, np.ndarray] = {}
    pending = None
    progress = Progress("prepare", total=times, done=done, unit="times", bytes_each=plan.frame_bytes)
    with progress, ThreadPoolExecutor(plan.threads) as pool:
        for number in range(plan.shards):
            if number in finished:
                tails = {}
                continue
            part = plan.times_of(number)
            shard = make_shard(job, part, tails, pool)
            if shard.faults and not keep_faults:
                _finish(journal, pending)
                raise ValueError(describe_faults(shard.faults, path))
            tails = shard.tails
            _finish(journal, pending)
            pending = number, shard, store[part].write(shard.frames)
            progress.update(len(shard.frames))
        _finish(journal, pending)


def _finish(journal: Journal, pending: tuple[int, Shard, ts.WriteFutures] | None) -> None:
    """Waits until a shard is committed, then marks it as finished: never the other way round."""
    if pending is None:
        return
    number, shard, write = pending
    write.result()
    journal.write_entry(
        number,
        partial=flatten_partial(shard.partial),
        checksums=shard.checksums,
        faults=np.array(shard.faults, np.str_),
    )


def make_shard(job: Job, part: slice, tails: Mapping[str, np.ndarray], pool: ThreadPoolExecutor) -> Shard:
    """Reads, checks and packs the frames of one shard; `tails` are the last frames before it where they are at hand."""
    times = np.arange(part.start, min(part.stop, len(job.source.times)))
    frames = np.empty((len(times), len(job.source.channels), *job.source.grid.shape), job.plan.dtype)

    def make(variable: str, channels: list[int]):
        return _make_variable(job, variable, channels, times, tails.get(variable), frames)

    groups = group_by_variable(job.source.channels)
    made = list(pool.map(make, groups, groups.values()))
    return Shard(
        frames=frames,
        partial=concatenate_partials([partial for partial, *_ in made]),
        checksums=np.concatenate([sums for _, sums, *_ in made], axis=1),
        faults=[fault for _, _, faults, _ in made for fault in faults],
        tails={variable: tail for variable, (*_, tail) in zip(groups, made)},
    )


def _make_variable(job: Job, variable: str, channels: list[int], times, tail: np.ndarray | None, frames: np.ndarray):
    """One variable of a shard, a block of times after another: fills `frames[:, channels]`."""
    source, first = job.source, times[0]
    some = slice(channels[0], channels[-1] + 1)
    names = [source.channels[channel].name for channel in channels]
    if tail is None:
        needed = first > 0 and np.any(job.partner[times[times < first + job.lag]] >= 0)
        tail = source.read(slice(max(0, first - job.lag), first) if needed else slice(0, 0), variables=[variable])
    partial, sums, faults = no_partial(len(channels)), [], []
    for start in range(0, len(times), job.plan.times_per_block):
        block = times[start : start + job.plan.times_per_block]
        values = source.read(block, variables=[variable])
        faults += check_frames(values, source.times[block], names)
        window = np.concatenate([tail, values])
        partner = job.partner[block]
        paired = partner >= 0
        index = np.where(paired, partner - block[0] + len(tail), 0)
        partial = merge_partials(
            partial,
            compute_partial(
                values,
                window[index],
                counted=job.counted[block],
                paired=paired,
                shift=job.shift[some],
                row_weights=job.row_weights,
            ),
        )
        try:
            stored = pack(values, job.scale[some], job.offset[some], job.plan.dtype)
        except UnpackableError as error:
            what = f"{names[error.channel]} at {source.times[block[error.time]]}: value {error.value}"
            raise ValueError(f"{what} cannot be stored as {job.plan.dtype}: prepare with float16 or float32") from None
        frames[start : start + len(block), some] = stored
        sums.append(checksums(stored))
        tail = window[-job.lag :]
    return partial, np.concatenate(sums), faults, tail
