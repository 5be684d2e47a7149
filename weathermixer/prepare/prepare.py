"""Prepares an archive from a source in one pass: reads, checks, packs, writes whole shards, gathers statistics.

Shards are made by as many workers as there are (see `workers`), each from the source alone. What is finished is in a
journal that lies with the archive, so a prepare that was stopped in any way goes on where it was, and ends the same.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from weathermixer.archive import storage
from weathermixer.archive.archive import CLIMATOLOGY, Archive, open_archive
from weathermixer.archive.progress import make_progress
from weathermixer.archive.verify import digest_archive
from weathermixer.fields.grid import area_weights
from weathermixer.prepare import writer
from weathermixer.prepare.normals import choose_terms, write_climatology
from weathermixer.prepare.shards import Task, find_pairs, make_shards
from weathermixer.prepare.sizes import ArchivePlan, plan_archive
from weathermixer.prepare.statistics import add_sums, describe_faults, make_statistics, measure_sample, no_sums
from weathermixer.prepare.workers import HERE, Workers
from weathermixer.prepare.writer import Journal
from weathermixer.sources.formats import no_chunk_cache
from weathermixer.sources.sources import Source


@no_chunk_cache()
def prepare_archive(
    source: Source,
    path: str | os.PathLike,
    *,
    times_per_shard: int | None = None,
    statistics_period: tuple[str, str] | None = None,
    area_weighted: bool = False,
    keep_faults: bool = False,
    climatology: bool | None = None,
    workers: Workers = HERE,
    **layout: Any,
) -> Archive:
    """Makes an archive at `path`, or goes on with one that was begun there with the same options.

    Args:
      times_per_shard: times in one file; None: what `plan_archive` finds.
      statistics_period: first and last date of the times that count in the statistics; None: all.
      area_weighted: whether the statistics weigh values by their cells' area.
      keep_faults: keeps missing, infinite and constant fields instead of stopping; they are counted and named. Points
        that a channel lacks at all times are no fault. Packed values that are netCDF's mark of missing values, and
        that files do not declare, are missing then.
      climatology: whether to add the climatology by hour and day of the year, of the times that count in the
        statistics; None: where they span ten years and have all seasons (see `normals`).
      workers: what makes the shards (see `open_workers`): this process, several, or a Dask cluster; the archive is
        the same, bit for bit.
      layout: fields of `Layout`: dtype, compressor, and the largest mesh, domain and tensor, that reads its own bytes.

    Raises ValueError naming time and variable where the source cannot be read, is faulty, or cannot be stored, and
    naming the path where it cannot be written. Nothing is published then, and the same call goes on where it stopped.

    >>> source = weathermixer.open_source("dry.zarr", variables=["temperature", "geopotential"])
    >>> archive = weathermixer.prepare_archive(source, "dry.archive", domain=4, tensor=2)
    >>> len(archive.times), archive.step_hours, archive.store.chunk_layout.read_chunk.shape
    (80, 6, (1, 2, 4, 32))
    """
    path, source = os.fspath(path), dataclasses.replace(source, gaps=keep_faults)
    plan = plan_archive(source, times_per_shard=times_per_shard, workers=workers.count, **layout)
    counted, back = find_pairs(source, plan.lag, statistics_period)
    terms, of_terms = choose_terms(source.times, counted, climatology)
    options = {"statistics_period": statistics_period, "area_weighted": area_weighted}
    about = options | {
        "keep_faults": keep_faults,
        "climatology": of_terms,
        "source": source.name,
        "step_hours": source.step_hours,
        "missing_times": [str(time.astype("datetime64[h]")) for time in source.missing_times],
        "account": list(source.account),
    }
    with writer.open_journal(path) as journal:
        recipe = _open_recipe(journal, source, plan, options, workers, keep_faults=keep_faults)
        scale, offset, shift = (np.array(recipe[name]) for name in ("scale", "offset", "shift"))
        writer.create_archive(
            path,
            times=source.times,
            grid=source.grid,
            channels=source.channels,
            static=source.static,
            scale=scale,
            offset=offset,
            layout=plan.layout,
            attributes=about,
        )
        lacking = ((variable, np.isnan(source.read([0], variables=[variable])[0])) for variable in source.variables)
        masks = {variable: missing for variable, missing in lacking if missing.any()}
        row_weights = area_weights(source.grid.latitude) if area_weighted else np.ones(source.grid.shape[0])
        whole = Task(
            target=writer.working_path(path), recipe=recipe["name"], source=source, plan=plan,
            shards=range(plan.layout.shards), first=0, scale=scale, offset=offset, shift=shift, row_weights=row_weights,
            counted=counted, back=back, masks=masks, keep_faults=keep_faults,
        )  # fmt: skip
        _write_shards(whole, journal, workers)
        more = _conclude(whole, journal, path) | {"rounding": recipe["rounding"]}
        if terms:
            write_climatology(whole, terms, workers)
        writer.publish(path, attributes=more)
    return open_archive(path)


def _open_recipe(
    journal: Journal, source: Source, plan: ArchivePlan, options: dict[str, Any], workers: Workers, *, keep_faults: bool
) -> dict[str, Any]:
    """What was begun with the same options, with the times of now: what was measured stays if its times are there."""
    description = {n: v for n, v in vars(plan.layout).items() if n not in ("shape", "static", "times_per_shard")}
    description |= options | {"static": list(source.static), "read_as": source.read_as}
    description |= {name: values.tolist() for name, values in vars(source.grid).items()}
    description["channels"] = [channel.name for channel in source.channels]
    times = hashlib.sha256(source.times.tobytes()).hexdigest()
    recipe = journal.open_recipe(description)
    if recipe is not None and recipe["times"] != times:  # shards of the same times stay, and what is of all goes
        storage.delete_folder(storage.open_folder(journal.target), CLIMATOLOGY)
    if recipe is None or not np.isin(np.array(recipe["sampled"], source.times.dtype), source.times).all():
        recipe, faults = measure_sample(source, plan.layout.dtype, workers)
        if faults and not keep_faults:
            raise ValueError(describe_faults(faults, journal.target.removesuffix(".partial")))
    measured = {name: recipe[name] for name in ("sampled", "scale", "offset", "shift", "rounding")}
    return journal.write_recipe(description, times=times, **measured)


def _write_shards(whole: Task, journal: Journal, workers: Workers) -> None:
    """Makes the shards that have no entry in the journal, or one of other times, or faults that are not kept.

    Entries of those that are made again are taken back first: a shard that is overwritten is not finished.
    """
    plan, times = whole.plan, len(whole.source.times)
    begun = sorted(journal.finished() & set(whole.shards))
    finished = {
        shard
        for shard, entry in zip(begun, journal.read_entries(begun))
        if entry["made_of"] == whole.describe(shard) and (whole.keep_faults or not len(entry["faults"]))
    }
    for shard in set(begun) - finished:
        journal.forget(shard)
    done = sum(len(whole.times_of(shard)) for shard in finished)
    with make_progress("prepare", total=times, done=done, unit="times", bytes_each=plan.frame_bytes) as progress:
        for count in workers.map(make_shards, _split(whole, finished)):
            progress.update(count)


def _split(whole: Task, finished: set[int]) -> Iterator[Task]:
    """Tasks of consecutive shards that are not finished, each with its own part of the source."""
    missing = np.array([shard for shard in whole.shards if shard not in finished], int)
    for run in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1):
        for start in range(0, len(run), whole.plan.shards_per_task):
            shards = range(run[start], run[min(start + whole.plan.shards_per_task, len(run)) - 1] + 1)
            begin, end = whole.times_of(shards[0]).start, whole.times_of(shards[-1]).stop
            part = slice(max(0, begin - whole.plan.lag), end)
            yield dataclasses.replace(
                whole, source=whole.source.narrow(part), shards=shards, first=part.start, counted=whole.counted[part],
                back=whole.back[part],
            )  # fmt: skip


def _conclude(whole: Task, journal: Journal, path: str) -> dict[str, Any]:
    """Writes what follows from all shards together, and returns the attributes that do."""
    sums, checksums, faults = no_sums(len(whole.source.channels)), [], []
    missing = np.zeros((2, len(whole.source.channels)), np.int64)
    for entry in journal.read_entries(whole.shards):
        sums = add_sums(sums, entry["sums"])
        checksums.append(entry["checksums"])
        faults += entry["faults"].tolist()
        missing += entry["missing"]
    writer.write_statistics(path, make_statistics(sums, whole.shift))
    storage.write_array(
        storage.join(whole.target, "checksum"), np.concatenate(checksums), dimensions=["time", "channel"]
    )
    chunks = storage.open_folder(storage.join(whole.target, "fields", "c"))
    for number in {int(key.split(b"/")[0]) for key in chunks.list().result()} - set(whole.shards):
        storage.delete_folder(chunks, str(number))  # begun with more times
    checksum, manifest = digest_archive(whole.target)
    return {
        "checksum": checksum,
        "manifest": manifest,
        "faults": faults,
        "missing": {
            channel.name: {"values": values, "times_of_other_points": changes}
            for channel, values, changes in zip(whole.source.channels, *missing.tolist(), strict=True)
            if values
        },
        "tendency_hours": whole.plan.lag * whole.source.step_hours,
    }
