"""Looks an archive over before GPU hours are spent on it: what it holds, gaps, faults, and whether a config fits it.

  python -m experiments.check ARCHIVE [--config=NAME] [--plot=FILE]

Prints times and gaps, statistics of every channel, faults, and what was left out when it was made. With a config also
its periods, and whether they overlap, its channels, its mesh and its evaluation. What would stop or spoil a run comes
last, a line for each, and makes the exit status 1.

Examples:
  python -m experiments.check era5.archive --plot=era5.png
  # the periods, channels and sizes of a run on 8 x 4 devices per instance
  python -m experiments.check era5.archive --config=reference --config.mesh.domain=8 --config.mesh.tensor=4
"""

import itertools

import numpy as np

from experiments import command_line, ends, evaluate
from experiments.prepare import describe_archive
from weathermixer import Archive, Settings, open_archive
from weathermixer.archive.sampling import in_period
from weathermixer.planning.meshes import Layout, misfits
from weathermixer.runs.build import make_channel_set, make_model_shape
from weathermixer.runs.samples import check_hours, find_starts
from weathermixer.verification.figures import draw_archive

PERIODS = ("train", "validation", "test")
GAPS_SHOWN = 8


def describe(archive: Archive) -> str:
    """What an archive holds, as text."""
    lat, lon = archive.grid.shape
    attributes, times = archive.attributes, archive.times
    gaps = find_gaps(archive)
    shown = [f"{first:.13}" + f" to {last:.13} ({count})" * (count > 1) for first, last, count in gaps[:GAPS_SHOWN]]
    more = f", and {len(gaps) - GAPS_SHOWN} more" * (len(gaps) > GAPS_SHOWN)
    lines = [
        f"times     {len(times)}, {times[0]:.13} to {times[-1]:.13}, every {archive.step_hours} h",
        f"gaps      {', '.join(shown) or 'none'}{more}",
        f"grid      {lat} x {lon}, latitude {archive.grid.latitude[0]:g} to {archive.grid.latitude[-1]:g}",
        f"static    {' '.join(archive.static) or 'none'}",
        f"made      {attributes['created']} by {attributes['software']}, as {archive.store.dtype.name}",
        f"          for meshes up to domain={attributes['domain']} tensor={attributes['tensor']}",
        f"source    {attributes['source']}",
        *(f"account   {line}" for line in attributes["account"]),
    ]
    return "\n".join(lines) + "\n" + describe_archive(archive)


def find_gaps(archive: Archive) -> list[tuple[np.datetime64, np.datetime64, int]]:
    """(first, last, how many) of the steps that are absent in each gap, the longest first."""
    step = np.timedelta64(archive.step_hours, "h")
    after = np.flatnonzero(np.diff(archive.times) > step)
    before, next_one = archive.times[after], archive.times[after + 1]
    gaps = [(a + step, b - step, int((b - a) / step) - 1) for a, b in zip(before, next_one)]
    return sorted(gaps, key=lambda gap: -gap[2])


def find_faults(archive: Archive) -> list[str]:
    """What of an archive alone would stop or spoil a run."""
    problems = [f"{fault} (kept)" for fault in archive.attributes["faults"]]
    for channel, std in zip(archive.channels, archive.statistics.std):
        if not std > 0:
            problems.append(f"{channel.name} has the standard deviation {std:g}: it cannot be standardized")
    return problems


def find_misfits(archive: Archive, settings: Settings) -> list[str]:
    """What of a config does not go with an archive."""
    problems = []
    for check in (_check_periods, _check_model, evaluate.check):
        try:
            problems += check(settings, archive) or []
        except ValueError as error:
            problems.append(str(error))
    return problems


def _check_periods(settings: Settings, archive: Archive) -> list[str]:
    """Prints what each period holds; names those that hold no pairs, and those that share times."""
    problems, lead_hours = [], settings.training.longest_steps * archive.step_hours
    inside = {name: in_period(archive.times, getattr(settings.data, name)) for name in PERIODS}
    for name, found in inside.items():
        first, last, starts = *getattr(settings.data, name), ()
        try:
            starts = find_starts(settings, archive, name)
            if name == "validation":
                check_hours(settings, archive, "validation_lead_hours", starts, name)
        except ValueError as error:
            problems.append(str(error))
        print(f"{name:<11}{first} to {last}: {found.sum()} times, {len(starts)} pairs {lead_hours} h apart")
    for a, b in itertools.combinations(PERIODS, 2):
        both = archive.times[inside[a] & inside[b]]
        if len(both):
            shared = f"{len(both)} times, {both[0]:.13} to {both[-1]:.13}"
            problems.append(f"config.data.{a} and {b} overlap: {shared}; scores on data that was seen say nothing")
    counted = archive.attributes["statistics_period"]
    seen = (inside["test"] if counted is None else inside["test"] & in_period(archive.times, tuple(counted))).sum()
    if seen:
        print(f"statistics are also of {seen} times of the test period (prepare --statistics-period keeps them out)")
    return problems


def _check_model(settings: Settings, archive: Archive) -> list[str]:
    """Names channels that are not there, and sizes that the mesh does not divide."""
    channel_set = make_channel_set(settings, archive)
    shape = make_model_shape(settings, archive.grid.shape, channel_set)
    mesh = settings.mesh
    layout = Layout(max(mesh.data, 1), mesh.domain, mesh.tensor)
    print(f"model      {len(channel_set.names)} channels and {len(channel_set.static)} static fields, mesh {layout}")
    made_for = archive.attributes["domain"], archive.attributes["tensor"]
    if made_for[0] % mesh.domain or made_for[1] % mesh.tensor:
        print(f"reading    the archive is made for domain={made_for[0]} tensor={made_for[1]}: more is read than needed")
    return misfits(shape, layout, settings.training.batch_size)


def make_parser() -> command_line.Parser:
    parser = command_line.make_parser("experiments.check", __doc__)
    parser.add_argument("archive", help="archive made by experiments.prepare")
    command_line.add_config(parser, required=False)
    about = "image of a few fields and of the statistics by level; default: none is drawn"
    parser.add_argument("--plot", type=command_line.output_file, metavar="FILE", help=about)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Prints what there is; returns 1 where something would stop or spoil a run."""
    options = make_parser().parse_args(arguments)
    archive = open_archive(options.archive)
    print(describe(archive) + "\n")
    problems = find_faults(archive)
    if options.config:
        problems += find_misfits(archive, command_line.read_settings(options))
    if options.plot:
        draw_archive(archive).savefig(options.plot)
        print(f"pictures in {options.plot}")
    print("\n".join([f"\n{len(problems)} problems:", *problems] if problems else ["nothing is wrong"]))
    return 1 if problems else 0


if __name__ == "__main__":
    ends.run(main)
