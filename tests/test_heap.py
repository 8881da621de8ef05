"""Freed memory stays in the process inside the block, and leaves it afterwards."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from manytune import heap
from manytune.heap import freed_memory_kept

MIB = 2**20
SIZE = 96 * MIB
BLOCK = 4 * MIB

needs_glibc = pytest.mark.skipif(heap._glibc() is None, reason="the C library isn't glibc")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(action: Callable[[], object]) -> int:
    before = resident()
    action()
    return resident() - before


def use_and_free() -> None:
    blocks = [torch.ones(BLOCK // 4) for _ in range(SIZE // BLOCK)]
    del blocks


@needs_glibc
def test_a_freed_block_stays_until_the_end() -> None:
    with freed_memory_kept():
        kept = growth(use_and_free)
        inside = resident()
    assert kept > SIZE - 8 * MIB
    assert inside - resident() > SIZE - 8 * MIB


@needs_glibc
def test_an_inner_block_leaves_it_to_the_outer_one() -> None:
    with freed_memory_kept():
        with freed_memory_kept():
            kept = growth(use_and_free)
            inner = resident()
        assert kept > SIZE - 8 * MIB
        assert resident() > inner - 8 * MIB
        inside = resident()
    assert inside - resident() > SIZE - 8 * MIB


@needs_glibc
def test_it_ends_with_an_error_too() -> None:
    before = resident()
    with pytest.raises(ValueError, match="stop"), freed_memory_kept():
        use_and_free()
        raise ValueError("stop")
    assert resident() < before + 8 * MIB


def test_other_devices_keep_memory_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_count", lambda *_: pytest.fail("changed the allocator"))
    with freed_memory_kept("cuda"):
        pass


@needs_glibc
def test_large_blocks_come_and_go_as_ever() -> None:
    with freed_memory_kept():
        assert growth(lambda: torch.ones(SIZE // 4)) < 8 * MIB
