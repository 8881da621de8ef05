"""Keeping freed memory in the process while a CPU computes, rather than handing it back after every operation.

glibc gives free memory at the end of its heap back to the system, and the next operation gets new pages, which the
system has to clear and map one by one, many thousands in a step of training. While this is on, freed blocks are used
again. Blocks of 64 MiB and more come from the system one by one and return to it, as ever: in a heap with holes, such
blocks would seldom fit where the last one was.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Parameters of mallopt(3), from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1
_LARGE = 64 * 2**20
# What glibc's own adaptation ends at in a process that frees large blocks.
_ADAPTED = 32 * 2**20

_lock = threading.Lock()
_users = 0


@contextmanager
def freed_memory_kept(device: str = "cpu") -> Iterator[None]:
    """Reuse freed memory inside the `with` block; afterwards what is free goes back to the system. May be nested.

    Nothing happens on other devices, whose allocators keep memory anyway, or with another C library than glibc.

    Args:
        device: The type of device that computes.
    """
    libc = _glibc() if device == "cpu" else None
    if libc is None:
        yield
        return
    _count(libc, 1)
    try:
        yield
    finally:
        _count(libc, -1)


def _count(libc: Any, change: int) -> None:
    global _users
    with _lock:
        was, _users = _users, _users + change
        if not was:
            libc.mallopt(_MMAP_THRESHOLD, _LARGE)
            libc.mallopt(_TRIM_THRESHOLD, _NEVER)
        elif not _users:
            libc.mallopt(_MMAP_THRESHOLD, _ADAPTED)
            libc.mallopt(_TRIM_THRESHOLD, 2 * _ADAPTED)
            libc.malloc_trim(0)


def _glibc() -> Any:
    """The C library, if it is glibc."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
