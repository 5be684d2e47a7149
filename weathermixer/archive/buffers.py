"""Host buffers that are used again: touching fresh memory costs as much as copying into it."""

import math
import mmap
import weakref
from collections import defaultdict

import numpy as np

_HUGE = 2**22  # pages of 2 MiB are asked for from here on, where the system has them


class Buffers:
    """Hands out arrays over page-aligned memory, and takes the memory back when nobody holds a view of it any more.

    JAX holds a view while a copy to a device is under way, and on the CPU, where an aligned array is not copied at all,
    as long as the device array lives. At most `spare` pieces of memory wait to be used again.
    """

    def __init__(self, spare: int):
        self._spare = spare
        self._free: dict[int, list[mmap.mmap]] = defaultdict(list)

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array with arbitrary contents."""
        size = math.prod(shape) * dtype.itemsize
        try:
            memory = self._free[size].pop()
        except IndexError:
            # private, as shared memory gets no huge pages
            memory = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if size >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
                memory.madvise(mmap.MADV_HUGEPAGE)
        # views of views keep this array alive, and it alone holds the memory
        whole = np.frombuffer(memory, np.uint8)
        weakref.finalize(whole, self._give_back, size, memory).atexit = False
        return whole[:size].view(dtype).reshape(shape)

    def _give_back(self, size: int, memory: mmap.mmap) -> None:
        if sum(map(len, self._free.values())) < self._spare:
            self._free[size].append(memory)
