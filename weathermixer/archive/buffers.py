"""Host buffers that are used again: touching fresh memory costs as much as copying into it."""

import math
import mmap
import weakref
from collections import deque

import numpy as np

# pages of 2 MiB are asked for from here on, where the system has them
_HUGE = 2**22


class Buffers:
    """Hands out arrays over page-aligned memory, and takes the memory back when nobody holds a view of it any more.

    JAX holds a view while a copy to a device is under way, and on the CPU, where an aligned array is not copied at all,
    as long as the device array lives. At most `spare` pieces of memory wait to be used again.
    """

    def __init__(self, spare: int):
        self._spare = spare
        self._free: deque[mmap.mmap] = deque()

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array with arbitrary contents."""
        size = max(1, math.prod(shape) * dtype.itemsize)
        memory = self._reuse(size) or _allocate(size)
        # views of views keep this array alive, and it alone holds the memory
        whole = np.frombuffer(memory, np.uint8, size)
        weakref.finalize(whole, self._give_back, memory).atexit = False
        return whole[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)

    def _reuse(self, size: int) -> mmap.mmap | None:
        for _ in range(len(self._free)):
            try:
                memory = self._free.popleft()
            except IndexError:  # a finalizer or another thread was quicker
                return None
            if len(memory) >= size and len(memory) < size + mmap.PAGESIZE:
                return memory
            self._free.append(memory)
        return None

    def _give_back(self, memory: mmap.mmap) -> None:
        if len(self._free) < self._spare:
            self._free.append(memory)


def _allocate(size: int) -> mmap.mmap:
    # private, as shared memory gets no huge pages
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
