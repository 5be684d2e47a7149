"""Memory is used again once nobody sees it, and never before."""

import gc
import mmap
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from weathermixer.archive.reader import HUGE_BYTES, Buffers

SHAPE, DTYPE = (2, 3, 1000), np.dtype(np.float16)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_returns_when_the_last_view_is_gone():
    buffers = Buffers()
    first = buffers.take(SHAPE, DTYPE)
    assert first.shape == SHAPE and first.dtype == DTYPE and address(first) % 4096 == 0
    where = address(first)
    view = first[1, :2][None]
    del first
    assert address(buffers.take(SHAPE, DTYPE)) != where
    view[:] = 7
    del view
    again = [buffers.take(SHAPE, DTYPE) for _ in range(2)]
    assert where in [address(array) for array in again]


def test_a_device_array_holds_its_memory():
    buffers = Buffers()
    host = buffers.take((1000,), np.dtype(np.float32))
    host[:] = 3
    where = address(host)
    on_device = jax.device_put(host, jax.devices()[0])
    del host
    other = buffers.take((1000,), np.dtype(np.float32))
    assert address(other) != where or on_device.unsafe_buffer_pointer() != where
    other[:] = 4
    assert (np.asarray(on_device) == 3).all()


def test_no_more_is_kept_than_was_in_use_and_only_what_fits_is_used():
    buffers = Buffers()
    for _ in range(2):
        held = [buffers.take(SHAPE, DTYPE) for _ in range(3)]
        del held
        gc.collect()
    assert len(buffers._free[12000]) == 3
    small = buffers.take((10,), np.dtype(np.int16))
    assert small.shape == (10,) and len(buffers._free[12000]) == 3
    assert buffers.take((0, 5), DTYPE).shape == (0, 5)


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE") or not Path("/proc/self/smaps").exists(), reason="Linux")
def test_large_ones_ask_for_large_pages():
    for size, asked in ((HUGE_BYTES, True), (HUGE_BYTES // 2, False)):
        where = address(array := Buffers().take((size,), np.dtype(np.uint8)))
        array[:] = 1
        mappings = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
        ends = [[int(end, 16) for end in mapping.split()[0].split("-")] for mapping in mappings]
        (own,) = [mapping for mapping, (first, past) in zip(mappings, ends) if first <= where < past]
        assert ("hg" in re.search("VmFlags: (.*)", own)[1].split()) == asked
