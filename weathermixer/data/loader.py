"""From the archive to the devices: each process reads the boxes of its own devices, each distinct box once.

A box is what one device holds of a global array [batch, channel, lat, lon]: some samples, a channel group, a latitude
band. Values stay as stored: widening and standardizing happen on the device.
"""

import dataclasses
import queue
import threading
from collections import deque
from collections.abc import Iterator

import jax
import numpy as np
import tensorstore as ts
from jax.sharding import Mesh
from jaxtyping import Array, Int, Num

from weathermixer.data.archive import Archive
from weathermixer.data.sampling import sample_starts
from weathermixer.mesh import check_divides, sharding
from weathermixer.variables import ChannelSet


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Inputs and the targets `lead_hours` later, as stored; static and padding channels hold zeros."""

    inputs: Num[Array, "b n lat lon"]
    targets: Num[Array, "b n lat lon"]


def read_frames(
    archive: Archive, channel_set: ChannelSet, mesh: Mesh, indices: Int[np.ndarray, " b"]
) -> Num[Array, "b n lat lon"]:
    """Frames of the archive's times `indices` as a global array of the stored dtype, static and padding channels zero.

    Raises ValueError where the mesh does not divide the sizes, a channel is absent or a chunk cannot be read.
    """
    return _finish(_start(archive, channel_set, mesh, indices))


@dataclasses.dataclass
class _Pending:
    """Frames that are being read: one host buffer per distinct box, and the devices that it goes to."""

    shape: tuple[int, int, int, int]
    sharding: jax.sharding.NamedSharding
    buffers: list[tuple[np.ndarray, list[jax.Device]]]
    reads: list[tuple[str, ts.WriteFutures]]


def _start(archive: Archive, channel_set: ChannelSet, mesh: Mesh, indices: Int[np.ndarray, " b"]) -> _Pending:
    shape = (len(indices), channel_set.size, *archive.grid.shape)
    check_divides(
        mesh, batch=("batch", shape[0]), channels=("channel", shape[1]), latitude=("lat", shape[2]),
        longitude=("lon", shape[3]),
    )  # fmt: skip
    chosen = archive.channel_indices(channel_set.names)
    where = sharding(mesh, "batch", "channel", "lat", "lon")
    owners: dict[tuple, list[jax.Device]] = {}
    for device, box in where.addressable_devices_indices_map(shape).items():
        bounds = tuple(part.indices(size)[:2] for part, size in zip(box, shape, strict=True))
        owners.setdefault(bounds, []).append(device)
    buffers, reads = [], []
    for (rows, channels, lats, lons), devices in owners.items():
        wanted = chosen[channels[0] : channels[1]]
        size = (rows[1] - rows[0], channels[1] - channels[0], lats[1] - lats[0], lons[1] - lons[0])
        buffer = np.empty(size, archive.store.dtype.numpy_dtype)
        buffer[:, len(wanted) :] = 0
        buffers.append((buffer, devices))
        for row, time in enumerate(indices[rows[0] : rows[1]]) if len(wanted) else ():
            source = archive.store[int(time), _as_slice(wanted), lats[0] : lats[1], lons[0] : lons[1]]
            what = (
                f"{archive.path}: cannot read time {archive.times[time]:.16}, channels {wanted[0]} to {wanted[-1]}, "
                f"latitudes {lats[0]} to {lats[1] - 1}"
            )
            reads.append((what, ts.array(buffer[row, : len(wanted)]).write(source)))
    return _Pending(shape, where, buffers, reads)


def _finish(pending: _Pending) -> jax.Array:
    for what, future in pending.reads:
        try:
            future.result()
        except Exception as error:
            raise ValueError(f"{what}: {error}") from error
    parts = [jax.device_put(buffer, device) for buffer, devices in pending.buffers for device in devices]
    return jax.make_array_from_single_device_arrays(pending.shape, pending.sharding, parts)


def _as_slice(indices: Int[np.ndarray, " n"]) -> slice | np.ndarray:
    """A slice where the indices are consecutive, which is read without a gather."""
    if np.all(np.diff(indices) == 1):
        return slice(int(indices[0]), int(indices[-1]) + 1)
    return indices


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
) -> "Batches":
    """Iterates over the batches of steps first_step ... last_step - 1, read ahead in the background."""
    lead = lead_hours // archive.step_hours

    def start(step: int) -> tuple[_Pending, _Pending]:
        chosen = sample_starts(starts, seed=seed, step=step, batch_size=batch_size)
        return _start(archive, channel_set, mesh, chosen), _start(archive, channel_set, mesh, chosen + lead)

    return Batches(start, range(first_step, last_step), prefetch)


class Batches(Iterator[Batch]):
    """Batches in order; `prefetch` of them are being read at a time, one more waits on the devices.

    An error surfaces in the consumer. `close` stops the reading; it is called at the end and by `with`.
    """

    def __init__(self, start, steps: range, prefetch: int):
        self._ready: queue.Queue = queue.Queue(maxsize=1)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(start, steps, prefetch), daemon=True)
        self._thread.start()

    def __next__(self) -> Batch:
        if self._closed.is_set():
            raise StopIteration
        item = self._ready.get()
        if isinstance(item, Batch):
            return item
        self.close()
        raise item

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _work(self, start, steps: range, prefetch: int) -> None:
        pending: deque = deque()
        try:
            upcoming = iter(steps)
            for step in upcoming:
                pending.append(start(step))
                if len(pending) == max(prefetch, 1) and not self._hand_over(pending):
                    return
            while pending:
                if not self._hand_over(pending):
                    return
            self._put(StopIteration())
        except Exception as error:  # raised again in the consumer
            self._put(error)

    def _hand_over(self, pending: deque) -> bool:
        inputs, targets = pending.popleft()
        return self._put(Batch(_finish(inputs), _finish(targets)))

    def _put(self, item) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
