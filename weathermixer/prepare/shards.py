"""Makes one shard of an archive from a source: reads, checks, packs, sums up. Nothing is written here."""

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32

from weathermixer.archive.checksums import checksums
from weathermixer.archive.packing import UnpackableError, pack
from weathermixer.archive.sampling import in_period
from weathermixer.fields.variables import group_by_variable
from weathermixer.prepare.checks import check_frames
from weathermixer.prepare.sizes import FEW_BYTES, ArchivePlan
from weathermixer.prepare.sources import Source
from weathermixer.prepare.statistics import Partial, compute_partial, concatenate_partials, merge_partials, no_partial


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """What making a shard needs. partner [time] is the index of the time 6 h earlier, -1 where there is none."""

    source: Source
    plan: ArchivePlan
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
    checksums: UInt32[np.ndarray, "time channel"]
    faults: list[str]
    tails: dict[str, np.ndarray]


def find_pairs(
    source: Source, period: tuple[str, str] | None
) -> tuple[Bool[np.ndarray, " time"], Int[np.ndarray, " time"], int]:
    """(times that count, index of the time 6 h earlier or -1, how many times back that can be).

    Where the source's step does not divide 6 h, one step stands for them. ValueError where no time lies in the period.
    """
    times, step = source.times, source.step_hours
    counted = np.ones(len(times), bool)
    if period is not None:
        counted = in_period(times, period)
        if not counted.any():
            raise ValueError(f"no time lies in the statistics' period {period}; there are {times[0]} ... {times[-1]}")
    lag = 6 // step if 6 % step == 0 else 1
    earlier = times - lag * step * np.timedelta64(1, "h")
    index = np.minimum(np.searchsorted(times, earlier), len(times) - 1)
    partner = np.where((times[index] == earlier) & counted & counted[index], index, -1)
    return counted, partner, lag


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
        # the steps below make copies: they take few times at once, which is quicker too, for the cores' caches
        for few in _split(len(block), values[0].nbytes):
            earlier = _earlier_frames(job, block[few], values, tail, first=int(block[0]))
            faults += check_frames(values[few], source.times[block[few]], names)
            part = compute_partial(
                values[few],
                earlier,
                counted=job.counted[block[few]],
                paired=job.partner[block[few]] >= 0,
                shift=job.shift[some],
                row_weights=job.row_weights,
            )
            partial = merge_partials(partial, part)
            stored = _pack(job, values[few], some, source.times[block[few]], names)
            frames[start + few.start : start + few.stop, some] = stored
            sums.append(checksums(stored))
        tail = np.concatenate([tail, values[-job.lag :]])[-job.lag :]
    return partial, np.concatenate(sums), faults, tail


def _split(times: int, frame_bytes: int) -> list[slice]:
    step = max(1, FEW_BYTES // frame_bytes)
    return [slice(start, min(start + step, times)) for start in range(0, times, step)]


def _earlier_frames(job: Job, times: np.ndarray, values: np.ndarray, tail: np.ndarray, *, first: int) -> np.ndarray:
    """The frames 6 h before those of `times`, of `values` or of the `tail` before them; any where there is none."""
    partner = job.partner[times] - first
    if partner[0] >= 0 and np.all(np.diff(partner) == 1):
        return values[partner[0] : partner[-1] + 1]
    return np.stack([values[max(n, 0)] if n >= 0 or -n > len(tail) else tail[n] for n in partner.tolist()])


def _pack(job: Job, values: np.ndarray, some: slice, times: np.ndarray, names: list[str]) -> np.ndarray:
    try:
        return pack(values, job.scale[some], job.offset[some], job.plan.dtype)
    except UnpackableError as error:
        what = f"{names[error.channel]} at {times[error.time]}: value {error.value}"
        raise ValueError(f"{what} cannot be stored as {job.plan.dtype}: prepare with float16 or float32") from None
