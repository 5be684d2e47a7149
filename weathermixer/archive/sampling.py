"""Which samples a step trains on: pure functions of the archive's times, a seed and the step.

Nothing is kept between steps, so a resumed run needs a number, and any number of processes sees the same order.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Shaped


def days_of_year(times: np.ndarray) -> Int[np.ndarray, " time"]:
    """Days of the year of these times, 1 to 366."""
    days = times.astype("datetime64[D]")
    return (days - times.astype("datetime64[Y]").astype("datetime64[D]")).astype(np.int64) + 1


def in_period(times: np.ndarray, period: tuple[str, str]) -> Bool[np.ndarray, " time"]:
    """True for times from the first to the last date of a period, both inclusive: ("1980", "2016") ends with 2016."""
    first, past = np.datetime64(period[0]), np.datetime64(period[1])
    past = past + np.timedelta64(1, np.datetime_data(past.dtype))
    return (times >= first) & (times < past)


def valid_starts(
    times: np.ndarray, period: tuple[str, str], lead_hours: int, *, step_hours: int
) -> Int[np.ndarray, " start"]:
    """Indices i such that times[i] and times[i] + lead, and every step between, are there and inside the period.

    Args:
      times: ascending datetime64 [time], step_hours apart, with gaps where times are missing.
      period: first and last date, both inclusive: ("1980", "2016") or ("2018-01-01", "2018-12-31T18").
      lead_hours: hours from input to target, a multiple of step_hours.

    Raises ValueError for a lead that is no multiple, times closer than step_hours and a period that holds no pair.
    """
    if lead_hours < step_hours or lead_hours % step_hours:
        raise ValueError(f"lead_hours={lead_hours} is not a positive multiple of the archive's step_hours={step_hours}")
    times = np.asarray(times, "datetime64[ns]")
    if len(times) > 1 and np.diff(times).min() < np.timedelta64(step_hours, "h"):
        raise ValueError(
            f"times are {np.diff(times).min().astype('timedelta64[m]')} apart, not step_hours={step_hours}"
        )
    inside = in_period(times, period)
    steps = lead_hours // step_hours
    # times ascend by at least one step, so a pair that is `steps` indices and lead_hours apart has no gap within
    whole = times[steps:] - times[:-steps] == np.timedelta64(lead_hours, "h")
    starts = np.flatnonzero(whole & inside[:-steps] & inside[steps:])
    if not len(starts):
        raise ValueError(
            f"no pair {lead_hours} h apart between {period[0]} and {period[1]}: the archive holds {len(times)} times "
            + (f"from {times[0]:.16} to {times[-1]:.16}".replace("T", " ") if len(times) else "")
            + "; choose other dates, or a longer period"
        )
    return starts


def find_times(times: np.ndarray, wanted: Shaped[np.ndarray, "*any"]) -> Int[np.ndarray, "*any"]:
    """Indices of the wanted times in ascending `times`, -1 for those that are not there."""
    found = np.minimum(np.searchsorted(times, wanted), len(times) - 1)
    return np.where(times[found] == wanted, found, -1)


def valid_indices(
    times: np.ndarray,
    starts: Int[np.ndarray, " start"],
    *,
    lead_hours: Sequence[int],
    until: np.datetime64 | None = None,
) -> Int[np.ndarray, "lead start"]:
    """Indices of the times `lead_hours` after times[starts]; -1 where the record has none, or only after `until`.

    Raises ValueError where there are no starts, and for a lead that no start reaches.
    """
    if not len(starts):
        held = f"the archive's times, {times[0]:.13} to {times[-1]:.13}"
        raise ValueError(f"no start to score: the period holds none of {held}; choose other dates")
    wanted = times[starts] + np.asarray(lead_hours)[:, None] * np.timedelta64(1, "h")
    last = times[-1] if until is None else np.datetime64(until, "ns")
    indices = np.where(wanted <= last, find_times(times, wanted), -1)
    missed = [lead for lead, row in zip(lead_hours, indices, strict=True) if (row < 0).all()]
    if missed:
        raise ValueError(
            f"lead_hours={missed}: no start from {times[starts].min():.13} to {times[starts].max():.13} has a valid "
            f"time in the archive until {min(last, times[-1]):.13}; choose shorter leads or a longer period"
        )
    return indices


def with_previous(times: np.ndarray, starts: Int[np.ndarray, " start"], *, step_hours: int) -> Int[np.ndarray, " kept"]:
    """Those starts that also have the time a step before them; ValueError where none has."""
    kept = starts[find_times(times, times[starts] - np.timedelta64(step_hours, "h")) >= 0]
    if not len(kept):
        raise ValueError(
            f"none of {len(starts)} starts has the time {step_hours} h before it, which history=2 needs; "
            "choose a longer period"
        )
    return kept


def sample_starts(
    starts: Int[np.ndarray, " start"], *, seed: int, step: int, batch_size: int, block: int = 1
) -> Int[np.ndarray, " batch"]:
    """The starts that a step trains on: each epoch permutes all starts, and a batch may end one and begin the next.

    With block > 1, runs of `block` consecutive starts are shuffled instead, and each batch row walks along its own run
    from step to step, so that with a lead of one step a target is the next step's input and is read once.
    """
    if batch_size < 1 or block < 1 or step < 0:
        raise ValueError(f"batch_size={batch_size} and block={block} must be at least 1, step={step} at least 0")
    if not len(starts):
        raise ValueError("starts is empty, there is no sample to draw: give those of a period that valid_starts finds")
    position = step * batch_size + np.arange(batch_size)
    epoch, within = position // len(starts), position % len(starts)
    chosen = np.empty(batch_size, np.int64)
    for number in np.unique(epoch):
        order = _epoch_order(starts, seed, int(number), batch_size, block)
        chosen[epoch == number] = order[within[epoch == number]]
    return chosen


def sample_leads(leads: Sequence[int], *, seed: int, step: int, batch_size: int) -> Int[np.ndarray, " batch"]:
    """The numbers, among `leads`, of the leads of a step's samples: drawn from (seed, step), each as likely."""
    words = np.random.PCG64(np.random.SeedSequence((seed, step, _LEADS))).random_raw(batch_size)
    return (words % np.uint64(len(leads))).astype(np.int64)


def replace_start(starts: Int[np.ndarray, " start"], *, seed: int, step: int, row: int, attempt: int) -> int:
    """Another start for a batch row whose sample cannot be read, the same on every process."""
    word = np.random.PCG64(np.random.SeedSequence((seed, step, row, attempt, _REPLACEMENT))).random_raw()
    return int(starts[word % len(starts)])


def _epoch_order(starts, seed: int, epoch: int, batch_size: int, block: int) -> Int[np.ndarray, " start"]:
    # raw words of a bit generator, not Generator.permutation: numpy promises that the former never change
    source = np.random.PCG64(np.random.SeedSequence((seed, epoch)))
    if block == 1:
        return starts[np.argsort(source.random_raw(len(starts)), kind="stable")]
    phase = int(source.random_raw(1)[0] % block)
    runs = np.split(starts, np.flatnonzero(np.diff(starts) != 1) + 1)
    blocks, rest = [], []
    for run in runs:
        full = (len(run) - phase) // block if len(run) > phase else 0
        cut = phase + full * block
        blocks.append(run[phase:cut].reshape(full, block))
        rest += [run[:phase], run[cut:]]
    blocks, rest = np.concatenate(blocks), np.concatenate(rest)
    blocks = blocks[np.argsort(source.random_raw(len(blocks)), kind="stable")]
    # rows of batch_size blocks side by side are read column by column: a row's next start is its next sample
    whole = len(blocks) // batch_size * batch_size
    walks = blocks[:whole].reshape(-1, batch_size, block).transpose(0, 2, 1).ravel()
    rest = np.concatenate([blocks[whole:].ravel(), rest])
    return np.concatenate([walks, rest[np.argsort(source.random_raw(len(rest)), kind="stable")]])


# keep the draws of replacements and leads apart from those of epochs
_REPLACEMENT, _LEADS = 0x5EED, 0x1EAD


def spread(starts: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the starts, evenly spread; all where count is 0."""
    if not count or count >= len(starts):
        return starts
    return starts[np.linspace(0, len(starts) - 1, count).round().astype(int)]
