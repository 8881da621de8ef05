"""Weights are copied one after another into memory that is given back with them."""

import gc
import mmap
import re
from pathlib import Path

import numpy as np
import pytest

from manytune.engine.openvino import huge_pages
from manytune.engine.openvino.huge_pages import HugePages

pytestmark = pytest.mark.skipif(
    not hasattr(mmap, "MADV_HUGEPAGE"), reason="the operations that read the weights are for Linux"
)


def drawn(size):
    return np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)


def test_copies_stay_as_they_were_and_follow_each_other(monkeypatch):
    monkeypatch.setattr(huge_pages, "_PIECE", 2**16)
    memory, sizes = HugePages(), [320, 6400, 64, 2**16, 0, 320, 2**17, 640]
    copies = [memory.copy(drawn(size)) for size in sizes]
    assert all(np.array_equal(copy, drawn(size)) for copy, size in zip(copies, sizes, strict=True))
    starts = [copy.ctypes.data for copy in copies]
    assert starts[1] - starts[0] == 320 and starts[2] - starts[1] == 6400  # in one piece
    assert all(start % 64 == 0 for start in starts)  # lines of a cache, as the operation reads them


def mapped(address):
    """Whether the process has memory at an address."""
    spans = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) ", Path("/proc/self/maps").read_text(), re.MULTILINE)
    return any(int(begin, 16) <= address < int(end, 16) for begin, end in spans)


def test_memory_is_there_as_long_as_an_array_in_it():
    memory = HugePages()
    first, second = memory.copy(drawn(640)), memory.copy(drawn(320))
    address = first.ctypes.data
    del memory, first
    gc.collect()
    assert mapped(address) and np.array_equal(second, drawn(320))
    del second
    gc.collect()
    assert not mapped(address)


def test_a_kernel_without_huge_pages_gives_others(monkeypatch):
    monkeypatch.setattr(huge_pages.mmap, "MADV_HUGEPAGE", 999)
    assert np.array_equal(HugePages().copy(drawn(640)), drawn(640))
