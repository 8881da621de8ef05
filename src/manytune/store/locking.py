"""One writer at a time, among the threads and processes that share a store."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from manytune.errors import StoreError

_POLL = 0.01  # seconds between two tries; what is done under the lock takes about as long
_PATIENCE = 60.0


@contextmanager
def locked(file: Path, *, patience: float = _PATIENCE) -> Iterator[None]:
    """Hold a lock while the block runs; wait for whoever holds it.

    The system frees the lock when its holder ends, however that ends, so a killed process blocks nobody. Windows has no
    such lock here; there the block runs without, and one process at a time may write.

    Args:
        file: The lock; created if it isn't there, and never removed.
        patience: Seconds to wait.

    Raises:
        StoreError: It is still held after that.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        deadline = time.monotonic() + patience
        while not try_lock(descriptor):
            if time.monotonic() > deadline:
                raise StoreError(
                    f"{file.parent}: another process has held it for {patience:.0f} s. Wait for it, or stop it."
                )
            time.sleep(_POLL)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Take the lock on an open file or directory if nobody holds it. Not for Windows."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
