"""Prepares an archive from a source in one pass: reads, checks, packs, writes whole shards, gathers statistics.

Shards are made one after another; the variables of a shard are read by several threads while the one before is written.
What is finished is in a journal, so a prepare that was stopped in any way goes on where it was, and ends the same.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from weathermixer.archive import storage
from weathermixer.archive.archive import Archive, open_archive
from weathermixer.archive.checksums import digest_archive
from weathermixer.archive.packing import DTYPES, choose_packing, rounding_error
from weathermixer.archive.progress import Progress
from weathermixer.fields.grid import area_weights
from weathermixer.fields.variables import group_by_variable
from weathermixer.prepare.checks import describe_faults
from weathermixer.prepare.journal import Journal, open_journal, remove_journal
from weathermixer.prepare.normals import choose_terms, climatology_members, write_climatology
from weathermixer.prepare.shards import Job, Shard, find_pairs, make_shard
from weathermixer.prepare.sizes import ArchivePlan, plan_archive
from weathermixer.prepare.sources import Source
from weathermixer.prepare.statistics import (
    flatten_partial,
    make_statistics,
    merge_partials,
    no_partial,
    unflatten_partial,
)
from weathermixer.prepare.writer import create_archive, publish, working_path, write_statistics

SAMPLE_TIMES = 16  # evenly over the record, from which scale and offset are chosen
SAMPLE_BYTES = 4 * 2**20  # of one variable


def prepare_archive(
    source: Source,
    path: str | os.PathLike,
    *,
    dtype: str = "float16",
    compressor: str = "none",
    domain: int = 1,
    tensor: int = 1,
    times_per_shard: int | None = None,
    statistics_period: tuple[str, str] | None = None,
    area_weighted: bool = False,
    keep_faults: bool = False,
    climatology: bool | None = None,
    threads: int | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> Archive:
    """Makes an archive at `path`, or goes on with one that was begun there with the same options.

    Args:
      dtype: float16, int16 or float32, as stored (see `packing`).
      compressor: "none"; "zstd" or "lz4" for 2/3 or 4/5 of the bytes, which take longer to decode than to copy.
      domain, tensor: the largest mesh that is to read just its own bytes; inner chunks follow from it.
      times_per_shard: times in one file; None: what `plan_archive` finds.
      statistics_period: first and last date of the times that count in the statistics; None: all.
      area_weighted: whether the statistics weigh values by their cells' area.
      keep_faults: keeps missing, infinite and constant fields instead of stopping; they are counted and named.
      climatology: whether to add the climatology by hour and day of the year, of the times that count in the
        statistics; None: where they span ten years and have all seasons (see `normals`).
      threads: variables read at once; None: one for each core, at most 8.
      attributes: more attributes for the archive.

    Raises ValueError naming time and variable where the source cannot be read, is faulty, or cannot be stored, and
    naming the path where it cannot be written. Nothing is published then, and the same call goes on where it stopped.

    >>> source = weathermixer.open_source("dry.zarr", variables=["temperature", "geopotential"])
    >>> archive = weathermixer.prepare_archive(source, "dry.archive", domain=4, tensor=2)
    >>> len(archive.times), archive.step_hours, archive.store.chunk_layout.read_chunk.shape
    (80, 6, (1, 2, 4, 32))
    """
    path = os.fspath(path)
    plan = plan_archive(
        source,
        dtype=dtype,
        compressor=compressor,
        domain=domain,
        tensor=tensor,
        times_per_shard=times_per_shard,
        threads=threads,
    )
    counted, partner, lag = find_pairs(source, statistics_period)
    terms, of_terms = choose_terms(source.times, counted, climatology)
    options = {"statistics_period": statistics_period, "area_weighted": area_weighted, "keep_faults": keep_faults}
    with open_journal(path) as journal:
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
            compressor=compressor,
            domain=domain,
            tensor=tensor,
            times_per_shard=plan.times_per_shard,
            attributes=_describe_source(source) | options | {"climatology": of_terms} | dict(attributes or {}),
        )
        row_weights = area_weights(source.grid.latitude) if area_weighted else np.ones(source.grid.shape[0])
        job = Job(source, plan, scale, offset, shift, row_weights, counted, partner, lag)
        _write_shards(job, store, journal, path, keep_faults=keep_faults)
        more = _conclude(job, journal, path, rounding=recipe["rounding"])
        members = ["checksum"]
        if terms:
            write_climatology(
                working_path(path), store, terms, source, scale=scale, offset=offset, center=shift, journal=journal
            )
            members += climatology_members(source.channels)
        publish(path, attributes=more, members=members)
    remove_journal(path)
    return open_archive(path)


def _make_recipe(journal: Journal, source: Source, plan: ArchivePlan, description: dict[str, Any]) -> dict[str, Any]:
    """Chooses scale and offset from a sample, measures what storage would cost in each type, and keeps both."""
    scale, offset, shift = (np.zeros(len(source.channels)) for _ in range(3))
    rounding = {dtype: np.zeros(len(source.channels)) for dtype in DTYPES}
    for variable, channels in group_by_variable(source.channels).items():
        sample = _read_sample(source, variable, len(channels))
        # the mean, whatever the type: statistics are taken of deviations from it
        _, shift[channels] = choose_packing(sample, "float16")
        scale[channels], offset[channels] = choose_packing(sample, plan.dtype)
        for dtype in DTYPES:
            rounding[dtype][channels] = rounding_error(sample, dtype)
    return journal.write_recipe(
        description,
        scale=scale.tolist(),
        offset=offset.tolist(),
        shift=shift.tolist(),
        rounding={dtype: values.tolist() for dtype, values in rounding.items()},
    )


def _read_sample(source: Source, variable: str, channels: int) -> np.ndarray:
    """Frames evenly over the record, thinned on the grid where they would take too much memory."""
    times = np.unique(np.linspace(0, len(source.times) - 1, SAMPLE_TIMES).round().astype(int))
    lat, lon = source.grid.shape
    thin = int(np.ceil(np.sqrt(len(times) * channels * lat * lon * 4 / SAMPLE_BYTES)))
    return np.concatenate(
        [source.read(times[[n]], variables=[variable])[..., ::thin, ::thin] for n in range(len(times))]
    )


def _describe_source(source: Source) -> dict[str, Any]:
    return {
        "source": source.name,
        "source_attributes": source.attributes,
        "step_hours": source.step_hours,
        "missing_times": [str(time.astype("datetime64[h]")) for time in source.missing_times],
        "account": list(source.account),
    }


def _write_shards(job: Job, store: storage.Array, journal: Journal, path: str, *, keep_faults: bool) -> None:
    """Makes the shards that have no entry in the journal, in order; the next is made while one is written."""
    plan, times = job.plan, len(job.source.times)
    finished = journal.finished()
    done = sum(len(range(times)[plan.times_of(shard)]) for shard in finished)
    tails: Mapping[str, np.ndarray] = {}
    pending = None
    progress = Progress("prepare", total=times, done=done, unit="times", bytes_each=plan.frame_bytes)
    with progress, ThreadPoolExecutor(plan.threads) as pool:
        for number in range(plan.shards):
            if number in finished:
                tails = {}
                continue
            part = plan.times_of(number)
            shard = make_shard(job, part, tails, pool)
            tails = shard.tails
            _finish(journal, pending, path)
            if shard.faults and not keep_faults:
                raise ValueError(describe_faults(shard.faults, path))
            pending = number, shard, store[part].write(shard.frames)
            progress.update(len(shard.frames))
        _finish(journal, pending, path)


def _finish(journal: Journal, pending: tuple[int, Shard, storage.WriteFutures] | None, path: str) -> None:
    """Waits until a shard is committed, then marks it as finished: never the other way round."""
    if pending is None:
        return
    number, shard, write = pending
    try:
        write.result()
    except Exception as error:
        raise ValueError(
            f"{working_path(path)} cannot be written: {error}\nfinished shards are kept: make room, or mend what is "
            "wrong, and the same command goes on"
        ) from None
    faults = np.array(shard.faults, np.str_)
    journal.write_entry(number, partial=flatten_partial(shard.partial), checksums=shard.checksums, faults=faults)


def _conclude(job: Job, journal: Journal, path: str, *, rounding: Mapping[str, list[float]]) -> dict[str, Any]:
    """Writes what follows from all shards together, and returns the attributes that do."""
    entries = [journal.read_entry(shard) for shard in range(job.plan.shards)]
    partial = no_partial(len(job.source.channels))
    for entry in entries:
        partial = merge_partials(partial, unflatten_partial(entry["partial"]))
    statistics = make_statistics(partial)
    write_statistics(path, statistics)
    sums = np.concatenate([entry["checksums"] for entry in entries])
    target = working_path(path)
    storage.write_array(storage.join(target, "checksum"), sums, dimensions=["time", "channel"])
    checksum, manifest = digest_archive(target)
    return {
        "checksum": checksum,
        "manifest": manifest,
        "faults": [str(fault) for entry in entries for fault in entry["faults"]],
        "tendency_hours": job.lag * job.source.step_hours,
        "rounding": dict(rounding),
    }
