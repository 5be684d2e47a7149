"""Reads of global arrays: settled once per loader, started many at a time, finished in order."""

import contextlib
import dataclasses
import itertools
import logging
import math
import mmap
import socket
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import CancelledError

import jax
import numpy as np
import tensorstore as ts
from jax.sharding import Mesh
from jaxtyping import Int

from weathermixer.archive.archive import Archive
from weathermixer.archive.boxes import Box, find_boxes, frames_shape
from weathermixer.archive.storage import as_slice
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel.mesh import sharding

# Chunks that lie together are read at once up to this size, each time by one thread into memory of its own: larger
# pieces are read at half the rate (0.25 degrees, whole globe: 1.4 GB/s in one piece, 3 GB/s in pieces)
PIECE_BYTES = 8 * 2**20
HUGE_BYTES = 2**22  # of a buffer, from which pages of 2 MiB are asked for, where the system has them
SLOW_SECONDS = 60.0  # a read that takes longer is named, again and again
logger = logging.getLogger(__name__)
Key = tuple[int, tuple[int, int], tuple[int, int]]  # time, range of channels, range of rows


class Buffers:
    """Hands out arrays over page-aligned memory, and takes the memory back when nobody holds a view of it any more.

    Touching fresh memory costs as much as copying into it.
    JAX holds a view while a copy to a device is under way, and on the CPU, where an aligned array is not copied at all,
    as long as the device array lives.
    """

    def __init__(self):
        self._free: dict[int, list[mmap.mmap]] = defaultdict(list)

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array with arbitrary contents."""
        size = math.prod(shape) * dtype.itemsize
        try:
            memory = self._free[size].pop()
        except IndexError:
            # private, as shared memory gets no huge pages
            memory = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if size >= HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
                memory.madvise(mmap.MADV_HUGEPAGE)
        # views of views keep this array alive, and it alone holds the memory
        whole = np.frombuffer(memory, np.uint8)
        weakref.finalize(whole, self._free[size].append, memory).atexit = False
        return whole[:size].view(dtype).reshape(shape)


class Unreadable(ValueError):
    """Frames that could not be read; `failed` has a message for each row of the batch that misses one."""

    def __init__(self, failed: dict[int, str]):
        super().__init__("; ".join(sorted(set(failed.values()))))
        self.failed = failed


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """One time in one region, [channel, lat, lon], zero on static and padding channels, and its reads in flight."""

    values: np.ndarray
    reads: list[ts.Future]
    what: str


@dataclasses.dataclass(frozen=True, eq=False)
class Pending:
    """Arrays that are being read: of each the boxes, with a buffer [row, channel, lat, lon] and the rows' frames."""

    arrays: list[list[tuple[Box, np.ndarray, list[Frame]]]]
    frames: dict[Key, Frame]  # all that they use
    bytes_needed: int  # of those that had to be read


class Reader:
    """Reads arrays [batch, channel, lat, lon] of one shape: the boxes of this process, each distinct frame's once."""

    def __init__(
        self,
        archive: Archive,
        channel_set: ChannelSet,
        mesh: Mesh,
        batch_size: int,
        *,
        devices: Sequence[jax.Device] | None = None,
    ):
        """`devices` are those whose boxes are read: this process's by default (others': to measure and to test)."""
        self.archive = archive
        self.shape = frames_shape(archive, channel_set, mesh, batch_size)
        self.sharding = sharding(mesh, "batch", "channel", "lat", "lon")
        self.boxes = find_boxes(mesh, self.shape, devices)
        self.dtype = archive.store.dtype.numpy_dtype
        # of the boxes of one array
        self.bytes = sum(math.prod(self._dimensions(box)) for box in self.boxes) * self.dtype.itemsize
        self._buffers = Buffers()
        _, group, _, lon = archive.store.chunk_layout.read_chunk.shape
        rows = max((lats[1] - lats[0] for _, _, lats in self.boxes), default=1)
        # by the archive's channels: a chunk lies in one piece, whichever boxes touch it
        self._piece_channels = group * max(1, PIECE_BYTES // (group * rows * lon * self.dtype.itemsize))
        chosen = archive.channel_indices(channel_set.stored_names)
        self._wanted = {channels: chosen[slice(*channels)] for _, channels, _ in self.boxes}
        self._views = {(channels, lats): self._cut(self._wanted[channels], lats) for _, channels, lats in self.boxes}

    def start(self, arrays: Sequence[Int[np.ndarray, " b"]], recent: Sequence[dict[Key, Frame]] = ()) -> Pending:
        """Begins to read the times of each array; what they share with each other or with `recent` is read once."""
        known = {key: frame for frames in recent for key, frame in frames.items()}
        used: dict[Key, Frame] = {}
        pending: list[list[tuple[Box, np.ndarray, list[Frame]]]] = []
        needed = 0
        # what is in a TensorStore batch is read together: a chunk that several boxes touch once, neighbours at once
        with contextlib.ExitStack() as stack:
            pieces = -(-len(self.archive.channels) // self._piece_channels)
            batches = [stack.enter_context(ts.Batch()) for _ in range(pieces)]
            for times in arrays:
                pending.append([])
                for box in self.boxes:
                    buffer, frames = self._buffers.take(self._dimensions(box), self.dtype), []
                    for row, time in enumerate(times[slice(*box.rows)]):
                        key = (int(time), box.channels, box.lats)
                        frame = used.get(key) or known.get(key)
                        if frame is None:
                            frame = self._read(key, buffer[row], batches)
                            needed += frame.values[: len(self._wanted[box.channels])].nbytes
                        used[key] = frame
                        frames.append(frame)
                    pending[-1].append((box, buffer, frames))
        return Pending(pending, used, needed)

    def finish(self, pending: Pending, closed: threading.Event) -> list[jax.Array]:
        """Waits for the reads, and puts the arrays on the devices; raises as `wait` does."""
        arrays = []
        for parts in self.wait(pending, closed):
            placed = [jax.device_put(buffer, device) for box, buffer in parts for device in self.boxes[box]]
            arrays.append(jax.make_array_from_single_device_arrays(self.shape, self.sharding, placed))
        return arrays

    def wait(self, pending: Pending, closed: threading.Event) -> list[list[tuple[Box, np.ndarray]]]:
        """Waits for the reads: the boxes on the host. Raises Unreadable, or CancelledError if `closed` is set."""
        failed: dict[int, str] = {}
        for box, buffer, frames in itertools.chain.from_iterable(pending.arrays):
            for row, frame in enumerate(frames):
                if problem := _wait(frame, closed):
                    failed[box.rows[0] + row] = problem
                elif len(frames) > 1 and not np.may_share_memory(frame.values, buffer[row]):
                    buffer[row] = frame.values
        if failed:
            raise Unreadable(failed)
        # a single frame goes to the device from wherever it was read to; its values[None], whose new axis has stride 0,
        # would be transposed on the host
        return [
            [(box, frames[0].values.reshape(buffer.shape) if len(frames) == 1 else buffer) for box, buffer, frames in a]
            for a in pending.arrays
        ]

    def _cut(self, wanted: Int[np.ndarray, " n"], lats: tuple[int, int]) -> list[tuple[int, slice, ts.TensorStore]]:
        """A region's pieces: (number, which of the wanted channels, their part of the store)."""
        numbers = wanted // self._piece_channels
        cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(wanted)]
        return [
            (int(numbers[first]), slice(first, last), self.archive.store[:, as_slice(wanted[first:last]), slice(*lats)])
            for first, last in itertools.pairwise(cuts)
            if first < last
        ]

    def _read(self, key: Key, values: np.ndarray, batches: list[ts.Batch]) -> Frame:
        time, channels, lats = key
        wanted, views = self._wanted[channels], self._views[channels, lats]
        values[len(wanted) :] = 0
        if not len(wanted):
            return Frame(values, [], "")
        names, latitude = self.archive.channels, self.archive.grid.latitude
        what = (
            f"{self.archive.path}: cannot read time {self.archive.times[time]:.16}, channels {names[wanted[0]].name} "
            f"to {names[wanted[-1]].name}, latitudes {latitude[lats[0]]:g} to {latitude[lats[1] - 1]:g}"
        )
        # straight into the buffer that goes to the device: one copy after decoding, and no allocation per read
        writes = [ts.array(values[some]).write(view[time], batch=batches[n]).commit for n, some, view in views]
        return Frame(values, writes, what)

    def _dimensions(self, box: Box) -> tuple[int, ...]:
        return (*(stop - start for start, stop in box), self.shape[3])


def _wait(frame: Frame, closed: threading.Event) -> str | None:
    """Waits for a frame; what went wrong, or None."""
    since, said = time.perf_counter(), SLOW_SECONDS
    for read in frame.reads:
        while not read.done():
            if closed.is_set():
                raise CancelledError
            with contextlib.suppress(Exception):  # whatever reading raises: found below, raised by `finish`
                read.result(timeout=0.5)
            if (waited := time.perf_counter() - since) > said:
                logger.warning("%s: %s yet, after %.0f s", socket.gethostname(), frame.what, waited)
                said += SLOW_SECONDS
    errors = [read.exception() for read in frame.reads]
    return next((f"{frame.what}: {error}" for error in errors if error is not None), None)
