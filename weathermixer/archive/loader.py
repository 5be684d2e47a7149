"""From the archive to the devices: each process reads the boxes of its own devices, each distinct box once.

Values stay as stored: widening and standardizing happen on the device. TensorStore's threads read, without Python; one
more thread plans ahead, waits and hands over, so that reads, copies to the devices and computing overlap. A slow store
is named in the log after a while; remote stores are asked again, with growing delays. One file: a batch, and its way.
"""

import contextlib
import dataclasses
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
    """Frames as stored; static and padding channels hold zeros. terms are forcings' coefficients (fields/forcings.py).

    >>> frames = jnp.zeros((2, 4, 16, 32), jnp.float16)
    >>> batch = weathermixer.Batch(inputs=frames, targets=frames)
    >>> batch.previous is None, len(jax.tree.leaves(batch))
    (True, 2)
    """

    inputs: Num[CutArray, "b n lat lon"]
    targets: Num[CutArray, "b n lat lon"]  # lead_hours later
    previous: Num[CutArray, "b n lat lon"] | None = None  # a step before the inputs, for models that see two
    terms: Float[CutArray, "b n k"] | None = None  # at the inputs' times; None where channels have no forcings
    previous_terms: Float[CutArray, "b n k"] | None = None
    later: tuple[Num[CutArray, "b n lat lon"], ...] = ()  # of a rollout, the targets after the first
    later_terms: tuple[Float[CutArray, "b n k"] | None, ...] = ()  # at the times of all targets but the last
    lead: Int[CutArray, " b"] | None = None  # each sample's number among the leads; None where there is one


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
    """What a loader has done in this process since it began."""

    bytes_needed: int = 0  # the boxes of the frames asked for, as stored before compression, each distinct one once
    # from storage, by TensorStore's own count: compressed, with the shards' indices (and with what else the process
    # read through TensorStore meanwhile, a checkpoint for one)
    bytes_read: int = 0
    skipped: tuple[str, ...] = ()  # what could not be read and was replaced, in words


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


class Samples(NamedTuple):
    """What a step trains on: indices of the starts, how many times later the first targets are, and leads' numbers."""

    step: int
    starts: Int[np.ndarray, " b"]
    times: Int[np.ndarray, " b"]
    lead: Int[CutArray, " b"] | None

    def at(self, offset: int) -> Int[np.ndarray, " b"]:
        """Indices of the inputs' times for 0, of targets' for 1, 2 ..., of those a step before the inputs for -1."""
        return self.starts + offset * (self.times if offset > 0 else 1)


@dataclasses.dataclass(eq=False)
class Batches(Iterator[Batch], contextlib.AbstractContextManager):
    """The batches of steps first_step ... last_step - 1, in order, read ahead by a thread; to be used in `with`.

    What cannot be read raises a ValueError that names time, channels and latitudes where on_error is "stop"; "skip"
    replaces the sample, on all processes by the same one, and counts it (they talk once per step then).

    >>> archive, mesh = weathermixer.open_archive("dry.archive"), weathermixer.make_mesh(1, 4, 2)
    >>> options = dict(starts=np.arange(70), seed=0, batch_size=2, lead_hours=6, first_step=0, last_step=3)
    >>> with weathermixer.Batches(archive, weathermixer.ChannelSet(archive.channels), mesh, **options) as batches:
    ...     [batch.inputs.shape for batch in batches]
    [(2, 4, 16, 32), (2, 4, 16, 32), (2, 4, 16, 32)]
    """

    archive: Archive
    channel_set: ChannelSet
    mesh: Mesh
    _: dataclasses.KW_ONLY
    starts: Int[np.ndarray, " start"]  # indices of the inputs' times (sampling.valid_starts), drawn by sample_starts
    seed: int
    batch_size: int
    lead_hours: int
    first_step: int
    last_step: int
    prefetch: int = 2  # batches that are being read at a time, at least 1
    block: int = 1  # shuffles runs of so many consecutive starts; a frame that is target and then input is read once
    history: int = 1  # 2 reads the frame a step before each start too (sampling.with_previous)
    rollout: int = 1  # targets, one each lead_hours; starts are valid for the last one's lead
    leads: Sequence[int] = (1,)  # of each sample lead_hours count so often, drawn from these (sampling.sample_leads)
    on_error: str = "stop"

    def __post_init__(self):
        if self.prefetch < 1:
            raise ValueError(f"prefetch={self.prefetch} must be at least 1")
        if self.on_error not in ("stop", "skip"):
            raise ValueError(f"on_error={self.on_error!r} must be 'stop' or 'skip'")
        hours = self.archive.step_hours
        self._lead, rest = divmod(self.lead_hours, hours)
        if rest or self._lead < 1:
            raise ValueError(f"lead_hours={self.lead_hours} is not a positive multiple of step_hours={hours}")
        # with blocks, an input was a target `lead` steps ago
        self._recent: deque[dict] = deque(maxlen=self._lead * max(self.leads) if self.block > 1 else 0)
        self._offsets = (*range(self.rollout + 1), *[-1] * (self.history == 2))
        self._reader = Reader(self.archive, self.channel_set, self.mesh, self.batch_size)
        self._steps = iter(range(self.first_step, self.last_step))
        self._pending: deque[tuple[Samples, Pending]] = deque()
        self._name = f"loader {next(_loaders)}"
        self._account = Account(bytes_read=-storage.bytes_read())  # what was read before
        self._closed = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        self._ready = deque(self._thread.submit(self._next) for _ in range(READY))

    @property
    def host_bytes(self) -> int:
        """Bound of the host memory: batches in flight, decoded and encoded, two ready, and those of frames kept."""
        return (2 * self.prefetch + READY + self._recent.maxlen) * len(self._offsets) * self._reader.bytes

    def account(self) -> Account:
        """What was read so far; the difference of two accounts is what happened between."""
        return dataclasses.replace(self._account, bytes_read=self._account.bytes_read + storage.bytes_read())

    def __next__(self) -> Batch:
        """The next batch; an error of the thread surfaces here."""
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
        for step in itertools.islice(self._steps, self.prefetch - len(self._pending)):
            samples = self._draw(step)
            self._pending.append((samples, self._start(samples, self._recent)))
            self._recent.append(self._pending[-1][1].frames)
        return self._finish(*self._pending.popleft()) if self._pending else None

    def _draw(self, step: int) -> Samples:
        which = dict(seed=self.seed, step=step, batch_size=self.batch_size)
        numbers = sample_leads(self.leads, **which)
        placed = put(numbers.astype(np.int32), self.mesh, "batch") if len(self.leads) > 1 else None
        starts = sample_starts(self.starts, block=self.block, **which)
        return Samples(step, starts, self._lead * np.asarray(self.leads)[numbers], placed)

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
                if self.on_error == "stop":
                    raise
                failed = error.failed
            if self.on_error == "skip":
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
                where = dict(seed=self.seed, step=samples.step, row=row, attempt=attempt)
                samples.starts[row] = replace_start(self.starts, **where)
            pending = self._start(samples, ())
        what = f"step {samples.step}: {REPLACEMENTS} samples in a row cannot be read"
        raise ValueError(f"{what}: {self._account.skipped[-1]}")

    def _make(self, samples: Samples, frames: dict[int, Array]) -> Batch:
        def terms(offset: int) -> Array | None:
            times, hours = self.archive.times[samples.at(offset)], self.archive.step_hours
            return place_terms(self.channel_set, times, self.mesh, step_hours=hours)

        sizes = dict(history=self.history, rollout=self.rollout)
        return arrange_batch(frames.__getitem__, terms, samples.lead, **sizes)
