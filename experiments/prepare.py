"""Makes an archive, which everything else reads, from weather data in any of the usual forms.

  python -m experiments.prepare SOURCE [SOURCE ...] DEST [options]

SOURCE is a WeatherBench 2 or ARCO-ERA5 Zarr store (a folder, or an s3://, gs:// or http(s):// address), a netCDF or
GRIB file (or the address of one), a folder of these, a quoted glob ('era5_*.nc'), or the word `simulated` for a dry
atmosphere that is computed here. Several together are one source. DEST is a folder, or an s3:// or gs:// address.

Examples:
  # look before you leap: variables, sizes, layout, memory; nothing is read or written
  python -m experiments.prepare era5.zarr era5.archive --dry-run
  # 64 x 32 ERA5 from the public bucket, three variables on three levels
  python -m experiments.prepare \\
    gs://weatherbench2/datasets/era5/1959-2022-6h-64x32_equiangular_conservative.zarr era5_64x32.archive --anonymous \\
    --variables=geopotential,temperature,2m_temperature --levels=850,500,250 --period=1979-01-01,2018-12-31
  # the published 0.25 degree set, for meshes of up to 8 latitude bands x 2 channel groups
  python -m experiments.prepare ERA5.zarr s3://bucket/era5.archive \\
    --channels=era5 --crop-south-pole --domain=8 --tensor=2
  # the 6 h forecasts of a store of forecasts, at the times that they are valid for, without a day and a month
  python -m experiments.prepare hres.zarr hres_6h.archive --select=prediction_timedelta=6h --exclude=2020-02-29,2021-07

A prepare that was stopped, however hard, goes on where it was when the same command is given again. NetCDF and Zarr are
read as they are; GRIB needs pip install 'weathermixer[grib]', remote sources need 'weathermixer[cloud]'.
"""

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from experiments import command_line, ends
from weathermixer import Archive, open_archive, open_source, prepare_archive, simulate, verify_archive
from weathermixer.archive.archive import is_archive
from weathermixer.archive.layout import COMPRESSORS
from weathermixer.archive.verify import describe_missing
from weathermixer.fields.variables import ERA5, group_by_variable
from weathermixer.planning.account import format_bytes
from weathermixer.prepare.sizes import ArchivePlan, plan_archive
from weathermixer.prepare.workers import open_workers
from weathermixer.prepare.writer import check_destination
from weathermixer.simulation.simulate import Settings as Simulation
from weathermixer.sources.sources import Source

COMPRESSOR_HELP = "default: none, read fastest; zstd (2/3 of the bytes), lz4 (4/5): for slow and remote stores"
# of open_source and of plan_archive, as they are called there
SOURCE_OPTIONS = (
    "variables", "levels_hpa", "static", "period", "step_hours", "crop_south_pole", "coarsen", "exclude", "select",
    "rename", "units",
)  # fmt: skip
LAYOUT_OPTIONS = ("dtype", "compressor", "domain", "tensor", "times_per_shard")
Cluster = Callable[[str | None], contextlib.AbstractContextManager[str | None]]  # of Dask, whose address it gives
CLIMATOLOGY_HELP = "mean by hour and day of the year, as WeatherBench 2's; auto: of ten years or more"


def make_parser(program: str = "experiments.prepare", doc: str | None = __doc__) -> command_line.Parser:
    parser = command_line.make_parser(program, doc)
    words, period, count = command_line.words, command_line.period, command_line.integer(1)
    about = "Zarr stores, netCDF or GRIB files, folders or quoted globs of them, or `simulated`"
    parser.add_argument("source", nargs="+", help=about)
    parser.add_argument("dest", help="where the archive goes: folder, s3:// or gs://")
    take = parser.add_argument_group("what to take from the source").add_argument
    about = "a ready set instead of --variables and --levels: era5 = 69 + 3"
    take("--channels", choices=["era5"], help=about)
    about = "WeatherBench 2's names or the source's, with a level or without; default: all that are known"
    take("--variables", type=words, metavar="NAME,...", help=about)
    about = "pressure levels; default: all there are"
    take("--levels", dest="levels_hpa", type=command_line.integers, metavar="HPA,...", help=about)
    about = "static fields, --static= for none; default: those known that are there"
    take("--static", type=words, metavar="NAME,...", help=about)
    take("--period", type=period, metavar="FIRST,LAST", help="dates, both included; default: everything")
    about = "hours between times; default: 6, or the source's if that is no part of 6"
    take("--step", dest="step_hours", type=count, metavar="HOURS", help=about)
    about = "months, days or hours to leave out, as 2020-02 or 2020-02-29T06"
    take("--exclude", type=dates, default=(), metavar="DATE,...", help=about)
    take("--crop-south-pole", action="store_true", help="drop the last row: 721 -> 720, as published")
    take("--coarsen", type=count, default=1, metavar="K", help="average blocks of K x K cells")
    command_line.add_readings(take)
    take("--days", type=count, metavar="N", help=f"of `simulated`; default: {Simulation.days}")
    take("--anonymous", action="store_true", help="public bucket: no credentials are looked for")
    keep = parser.add_argument_group("how to keep it").add_argument
    keep("--dtype", default="float16", choices=["float16", "int16", "float32"], help="default: float16")
    keep("--compressor", default="none", choices=list(COMPRESSORS), help=COMPRESSOR_HELP)
    keep("--domain", type=count, default=1, metavar="N", help="largest number of latitude bands to train with")
    keep("--tensor", type=count, default=1, metavar="N", help="largest number of channel groups to train with")
    keep("--times-per-shard", type=count, metavar="N", help="times in one file; default: up to 268 MB")
    about = "dates that count: the training years"
    keep("--statistics-period", type=period, metavar="FIRST,LAST", help=about)
    keep("--area-weighted", action="store_true", help="weigh the statistics by the cells' area")
    keep("--keep-faults", action="store_true", help="keep missing, infinite and constant fields, and name them")
    keep("--climatology", choices=["auto", "yes", "no"], default="auto", help=CLIMATOLOGY_HELP)
    who = parser.add_argument_group("who makes it; the archive is the same").add_mutually_exclusive_group().add_argument
    who("--workers", type=count, metavar="N", help="processes; default: cores, or one for each GB where that is less")
    who("--dask", metavar="ADDRESS", help="instead: the workers of a Dask scheduler, or local:N")
    parser.add_argument("--dry-run", action="store_true", help="print what would be made, and stop")
    about = "read DEST again, made now or before, and check every byte"
    parser.add_argument("--verify", action="store_true", help=about)
    return parser


def dates(text: str) -> tuple[str, ...]:
    """Years, months, days or hours from "2018-02,2018-12-31T00"."""
    command_line.times(text)
    return command_line.words(text)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status: 1 where --verify finds faults, which are printed."""
    return run(make_parser().parse_args(arguments))


def run(options: argparse.Namespace, open_cluster: Cluster = contextlib.nullcontext) -> int:
    """As main; `open_cluster` is called with what --dask says once shards are to be made, and starts their workers."""
    if options.verify and not options.dry_run and is_archive(options.dest, complete=True):
        print(f"{options.dest} is published: nothing to prepare")
    elif not _prepare(options, open_cluster) or not options.verify:
        return 0
    findings = verify_archive(options.dest)
    if findings:
        print("\n".join(findings))
    else:
        good = f"verified {options.dest}: every value is as it was prepared"
        print("\n".join([*describe_missing(open_archive(options.dest)), good]))
    return 1 if findings else 0


def _prepare(options: argparse.Namespace, open_cluster: Cluster) -> bool:
    """Prepares and prints; False where it was a dry run."""
    reading = source_options(options)
    check_destination(options.dest)
    if options.source == ["simulated"]:
        # kept beside the archive: it is made once, and prepared in as many ways as one likes
        options.source = [simulate(options.dest.rstrip("/") + ".simulation.zarr", days=options.days or Simulation.days)]
    source = open_source(options.source, **reading)
    layout = {name: getattr(options, name) for name in LAYOUT_OPTIONS}
    plan = plan_archive(source, **layout, workers=options.workers)
    workers = f"Dask's workers ({options.dask})" if options.dask else f"{plan.workers} workers"
    print(describe_plan(source, plan, options.dest, workers), flush=True)
    if options.dry_run:
        return False
    with open_cluster(options.dask) as dask, open_workers(plan.workers, dask=dask) as workers:
        archive = prepare_archive(
            source,
            options.dest,
            **layout,
            **{name: getattr(options, name) for name in ("statistics_period", "area_weighted", "keep_faults")},
            climatology={"auto": None, "yes": True, "no": False}[options.climatology],
            workers=workers,
        )
    print(describe_archive(archive))
    return True


def source_options(options: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `open_source`; ValueError for options that go with nothing that is there."""
    if options.channels and (options.variables or options.levels_hpa or options.static is not None):
        raise ValueError("--channels is a set of variables, levels and static fields: leave those out, or it")
    if options.days and options.source != ["simulated"]:
        raise ValueError("--days is of `simulated`: a source has --period")
    if options.anonymous and not all(source.startswith(("gs://", "s3://")) for source in options.source):
        raise ValueError("--anonymous is of s3:// and gs:// sources")
    found = {name: getattr(options, name) for name in SOURCE_OPTIONS}
    if options.channels == "era5":
        found |= {"variables": [channel.name for channel in ERA5.dynamic], "static": list(ERA5.static)}
    if options.anonymous:
        found["storage_options"] = {"token": "anon"} if options.source[0].startswith("gs://") else {"anon": True}
    return found


def describe_plan(source: Source, plan: ArchivePlan, dest: str | os.PathLike, workers: str) -> str:
    """What will be made, before it is made."""
    layout, compression = plan.layout, "without compression"
    if layout.compressor != "none":
        share = COMPRESSORS[layout.compressor][2]
        compression = f"before {layout.compressor}, about {format_bytes(share * layout.total_bytes)} after it"
    lat, lon = source.grid.shape
    lines = [
        f"source    {source.name}",
        f"times     {len(source.times)}, {source.times[0]:.13} to {source.times[-1]:.13}",
        f"          every {source.step_hours} h, {len(source.missing_times)} missing between them",
        *(f"account   {line}" for line in source.account),
        f"grid      {lat} x {lon}, latitude {source.grid.latitude[0]:g} to {source.grid.latitude[-1]:g}",
        f"channels  {len(source.channels)}:",
    ]
    for variable, indices in group_by_variable(source.channels).items():
        levels = [str(source.channels[index].level_hpa) for index in indices if source.channels[index].level_hpa]
        lines.append(f"            {variable}" + (f" on {' '.join(levels)} hPa" if levels else ""))
    lines += [
        f"static    {' '.join(source.static) or 'none'}",
        f"archive   {dest}",
        f"          {layout.dtype}, {format_bytes(layout.total_bytes)} {compression}",
        f"          made for meshes up to domain={layout.domain} tensor={layout.tensor}",
        f"          {layout.shards} files of {layout.times_per_shard} times, {format_bytes(layout.shard_bytes)} each",
        f"          chunks of {' x '.join(map(str, layout.chunk))} (time, channel, latitude, longitude)",
        f"reading   {format_bytes(plan.frame_bytes * len(source.times))} as float32 by {workers}, which take up to "
        f"{format_bytes(plan.worker_bytes)} of memory each",
    ]
    return "\n".join(lines)


def describe_archive(archive: Archive) -> str:
    """Statistics of what was made, and what its storage costs: rms rounding in percent of the 6 h tendency."""
    statistics, attributes = dataclasses.asdict(archive.statistics), archive.attributes
    hours = f"{attributes['tendency_hours']} h std"
    table = pd.DataFrame({"units": [channel.units.replace("**", "") for channel in archive.channels], **statistics})
    for dtype in ("float16", "int16"):
        table[dtype] = (100 * np.array(attributes["rounding"][dtype]) / table.tendency_std).map("{:.3f}".format)
    table.index = [channel.name for channel in archive.channels]
    lines = [
        f"published {archive.path}",
        f"checksum  {attributes['checksum']}",
        f"climatology {attributes['climatology']}",
        f"\nfloat16, int16: rounding / {hours}, %\n",
        table.rename(columns={"tendency_std": hours}).to_string(float_format="{:.4g}".format),
    ]
    if missing := describe_missing(archive):
        lines += ["", *missing]
    if attributes["faults"]:
        faults = attributes["faults"]
        lines += ["", f"{len(faults)} faulty fields were kept, the first:", *(f"  {fault}" for fault in faults[:10])]
    return "\n".join(lines)


if __name__ == "__main__":
    ends.run(main)
