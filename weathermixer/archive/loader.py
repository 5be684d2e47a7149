"""From the archive to the devices: each process reads the boxes of its own devices, each distinct box once.

Values stay as stored: widening and standardizing happen on the device. TensorStore's threads read, without Python; one
more thread plans ahead, waits and hands over, so that reads, copies to the devices and computing overlap. A slow store
is named in the log after a while; remote stores are asked again, with growing delays. One file: a batch, and its way.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Num

from weathermixer.archive import storage
from weathermixer.archive.archive import Archive
from weathermixer.archive.reader import Pending, Reader, Unreadable
from weathermixer.archive.sampling import replace_start, sample_leads, sample_starts
from weathermixer.archive.standardization import place_terms
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel.distributed import exchange
from weathermixer.parallel.mesh import CutArray, put

REPLACEMENTS = 16  # of a sample, before the archive counts as broken
READY = 2  # batches that wait for the consumer at most
logger = logging.getLogger(__name__)
_loaders = itertools.count()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Inputs and the targets `lead_hours` later, as stored; static and padding channels hold zeros.

    `previous` is the frame a step before the inputs, for models that see two. `terms` and `previous_terms` are the
    forcings' coefficients at the times of both (fields/forcings.py), None where the channels have no forcings. Of a
    rollout, `later` are the targets after the first, `later_terms` the coefficients at the times of all but the last.
    `lead` is the number of each sample's lead among those that are drawn from, None where there is one.

    >>> frames = jnp.zeros((2, 4, 16, 32), jnp.float16)
    >>> batch = weathermixer.Batch(inputs=frames, targets=frames)
    >>> batch.previous is None, len(jax.tree.leaves(batch))
    (True, 2)
    """

    inputs: Num[CutArray, "b n lat lon"]
    targets: Num[CutArray, "b n lat lon"]
    previous: Num[CutArray, "b n lat lon"] | None = None
    terms: Float[CutArray, "b n k"] | None = None
    previous_terms: Float[CutArray, "b n k"] | None = None
    later: tuple[Num[CutArray, "b n lat lon"], ...] = ()
    later_terms: tuple[Float[CutArray, "b n k"] | None, ...] = ()
    lead: Int[CutArray, " b"] | None = None


def arrange_batch(
    frames: Callable[[int], Any], terms: Callable[[int], Any], lead: Any, *, history: int, rollout: int
) -> Batch:
    """A batch of frames and forcings' coefficients, by how many leads after the inputs they are; -1: a step before."""
    return Batch(
        inputs=frames(0),
        targets=frames(1),
        previous=frames(-1) if history == 2 else None,
        terms=terms(0),
        previous_terms=terms(-1) if history == 2 else None,
        later=tuple(map(frames, range(2, rollout + 1))),
        later_terms=tuple(map(terms, range(1, rollout))),
        lead=lead,
    )


@dataclasses.dataclass
class Account:
    """What a loader has done in this process since it began.

    bytes_needed: the boxes of the frames asked for, as stored before compression, each distinct one once.
    bytes_read: from storage, by TensorStore's own count: compressed, with the shards' indices (and with what else the
      process read through TensorStore meanwhile, a checkpoint for one).
    skipped: what could not be read and was replaced, in words.
    """

    bytes_needed: int = 0
    bytes_read: int = 0
    skipped: tuple[str, ...] = ()


class Samples(NamedTuple):
    """What a step trains on: indices of the starts, how many times later the first targets are, and leads' numbers."""

    step: int
    starts: Int[np.ndarray, " b"]
    times: Int[np.ndarray, " b"]
    lead: Int[CutArray, " b"] | None

    def at(self, offset: int) -> Int[np.ndarray, " b"]:
        """Indices of the inputs' times for 0, of targets' for 1, 2 ..., of those a step before the inputs for -1."""
        return self.starts + offset * (self.times if offset > 0 else 1)


def read_frames(
    archive: Archive, channel_set: ChannelSet, mesh: Mesh, indices: Int[np.ndarray, " b"]
) -> Num[Array, "b n lat lon"]:
    """Frames of the archive's times `indices` as a global array of the stored dtype, static and padding channels zero.

    Raises ValueError where the mesh does not divide the sizes, a channel is absent or a chunk cannot be read.

    >>> archive, mesh = weathermixer.open_archive("dry.archive"), weathermixer.make_mesh(1, 4, 2)
    >>> frames = weathermixer.read_frames(archive, weathermixer.ChannelSet(archive.channels), mesh, np.array([0, 4]))
    >>> frames.shape, frames.dtype.name, frames.addressable_shards[0].data.shape
    ((2, 4, 16, 32), 'float16', (2, 2, 4, 32))
    """
    reader = Reader(archive, channel_set, mesh, len(indices))
    (frames,) = reader.finish(reader.start([indices]), threading.Event())
    return frames


def make_batches(
    archive: Archive,
    channel_set: ChannelSet,
    mesh: Mesh,
    *,
    starts: Int[np.ndarray, " start"],
    seed: int,
    batch_size: int,
    lead_hours: int,
    first_step: int,
    last_step: int,
    prefetch: int = 2,
    block: int = 1,
    history: int = 1,
    rollout: int = 1,
    leads: Sequence[int] = (1,),
    on_error: str = "stop",
) -> "Batches":
    """Iterates over the batches of steps first_step ... last_step - 1, read ahead in the background.

    Args:
      starts: indices of the inputs' times (sampling.valid_starts); the order is sampling.sample_starts'.
      prefetch: how many batches are being read at a time, at least 1.
      block: shuffles runs of so many consecutive starts; a frame that is a target and then an input is read once.
      history: 2 reads the frame a step before each start too (sampling.with_previous).
      rollout: how many targets, one each lead_hours; starts are valid for the last one's lead.
      leads: of each sample lead_hours count so often, drawn from these (sampling.sample_leads).
      on_error: "stop" raises a ValueError that names time, channels and latitudes of what cannot be read; "skip"
        replaces the sample, on all processes by the same one, and counts it (they talk once per step then).

    >>> archive, mesh = weathermixer.open_archive("dry.archive"), weathermixer.make_mesh(1, 4, 2)
    >>> options = dict(starts=np.arange(70), seed=0, batch_size=2, lead_hours=6, first_step=0, last_step=3)
    >>> with weathermixer.make_batches(archive, weathermixer.ChannelSet(archive.channels), mesh, **options) as batches:
    ...     [batch.inputs.shape for batch in batches]
    [(2, 4, 16, 32), (2, 4, 16, 32), (2, 4, 16, 32)]
    """
    if prefetch < 1:
        raise ValueError(f"prefetch={prefetch} must be at least 1")
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error={on_error!r} must be 'stop' or 'skip'")
    lead, rest = divmod(lead_hours, archive.step_hours)
    if rest or lead < 1:
        raise ValueError(f"lead_hours={lead_hours} is not a positive multiple of step_hours={archive.step_hours}")
    # with blocks, an input was a target `lead` steps ago
    keep = lead * max(leads) if block > 1 else 0
    offsets = (*range(rollout + 1), *[-1] * (history == 2))
    reader = Reader(archive, channel_set, mesh, batch_size, spare=len(offsets) * (prefetch + READY + keep))

    def draw(step: int) -> Samples:
        chosen = sample_starts(starts, seed=seed, step=step, batch_size=batch_size, block=block)
        numbers = sample_leads(leads, seed=seed, step=step, batch_size=batch_size)
        placed = put(numbers.astype(np.int32), mesh, "batch") if len(leads) > 1 else None
        return Samples(step, chosen, lead * np.asarray(leads)[numbers], placed)

    def make(samples: Samples, frames: dict[int, Array]) -> Batch:
        def terms(offset: int) -> Array | None:
            return place_terms(channel_set, archive.times[samples.at(offset)], mesh, step_hours=archive.step_hours)

        return arrange_batch(frames.__getitem__, terms, samples.lead, history=history, rollout=rollout)

    drawn = map(draw, range(first_step, last_step))
    replace = functools.partial(replace_start, starts, seed=seed) if on_error == "skip" else None
    return Batches(reader, drawn, make, offsets=offsets, replace=replace, prefetch=prefetch, keep=keep)


class Batches(Iterator[Batch], contextlib.AbstractContextManager):
    """Batches in order, read by a thread; to be closed, or used in `with`. An error surfaces in the consumer."""

    def __init__(
        self,
        reader: Reader,
        drawn: Iterator[Samples],
        make: Callable[[Samples, dict[int, Array]], Batch],
        *,
        offsets: Sequence[int],
        replace: Callable[..., int] | None,
        prefetch: int,
        keep: int,
    ):
        self._reader, self._drawn, self._make, self._replace = reader, drawn, make, replace
        self._offsets, self._prefetch = offsets, prefetch
        self._pending: deque[tuple[Samples, Pending]] = deque()
        self._recent: deque[dict] = deque(maxlen=keep)
        self._name = f"loader {next(_loaders)}"
        self._account = Account(bytes_read=-storage.bytes_read())  # what was read before
        self._closed = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        self._ready = deque(self._thread.submit(self._next) for _ in range(READY))

    @property
    def host_bytes(self) -> int:
        """Bound of the host memory: batches in flight, decoded and encoded, two ready, and those of frames kept."""
        return (2 * self._prefetch + READY + self._recent.maxlen) * len(self._offsets) * self._reader.bytes

    def account(self) -> Account:
        """What was read so far; the difference of two accounts is what happened between."""
        return dataclasses.replace(self._account, bytes_read=self._account.bytes_read + storage.bytes_read())

    def __next__(self) -> Batch:
        try:
            batch = None if self._closed.is_set() else self._ready.popleft().result()
        except BaseException:
            self.close()
            raise
        if batch is None:
            self.close()
            raise StopIteration
        self._ready.append(self._thread.submit(self._next))
        return batch

    def close(self) -> None:
        """Stops reading; whoever asks for another batch finds the end."""
        self._closed.set()
        self._thread.shutdown(cancel_futures=True)
        for held in (self._ready, self._pending, self._recent):
            held.clear()

    def __exit__(self, *_) -> None:
        self.close()

    def _next(self) -> Batch | None:
        """The next batch, None after the last; begins to read those after it."""
        for samples in itertools.islice(self._drawn, self._prefetch - len(self._pending)):
            self._pending.append((samples, self._start(samples, self._recent)))
            self._recent.append(self._pending[-1][1].frames)
        return self._finish(*self._pending.popleft()) if self._pending else None

    def _start(self, samples: Samples, recent: Sequence[dict]) -> Pending:
        pending = self._reader.start([samples.at(offset) for offset in self._offsets], recent)
        self._account.bytes_needed += pending.bytes_needed
        return pending

    def _finish(self, samples: Samples, pending: Pending) -> Batch:
        """Waits for a batch; where rows cannot be read, stops, or replaces them until all processes have theirs."""
        for attempt in range(REPLACEMENTS):
            failed: dict[int, str] = {}
            try:
                arrays = self._reader.finish(pending, self._closed)
            except Unreadable as error:
                if self._replace is None:
                    raise
                failed = error.failed
            if self._replace is not None:
                # not by the devices, whose collectives would race with the training step's
                answers = exchange(self._name, json.dumps(failed), given_up=self._closed.is_set)
                failed = dict(sorted((int(row), why) for text in answers for row, why in json.loads(text).items()))
            if not failed:
                # not waited for: a copy to a GPU begins when the steps that it has been sent by then are done
                return self._make(samples, dict(zip(self._offsets, arrays, strict=True)))
            samples = samples._replace(starts=samples.starts.copy())
            for row, problem in failed.items():
                what = f"step {samples.step}, row {row}: {problem}"
                self._account.skipped += (what,)
                logger.warning("replaced a sample: %s", what)
                samples.starts[row] = self._replace(step=samples.step, row=row, attempt=attempt)
            pending = self._start(samples, ())
        what = f"step {samples.step}: {REPLACEMENTS} samples in a row cannot be read"
        raise ValueError(f"{what}: {self._account.skipped[-1]}")
