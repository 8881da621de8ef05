"""One writer at a time, among the threads and processes that share a store or a run's directory."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from manytune.atomic import make_directory
from manytune.errors import LockedError

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
        LockedError: It is still held after that.
    """
    if sys.platform == "win32":
        yield
        return
    with _opened(file, os.O_RDWR | os.O_CREAT) as descriptor:
        deadline = time.monotonic() + patience
        while not try_lock(descriptor):
            if time.monotonic() > deadline:
                raise LockedError(
                    f"{file.parent}: another process has held it for {patience:.0f} s. Wait for it, or stop it."
                )
            time.sleep(_POLL)
        yield


@contextmanager
def held(directory: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a directory for this process while the block runs; it is created if it isn't there.

    The hold ends with the process, however that ends, so nothing has to be cleaned up after a kill. Windows can't hold
    a directory; there the block runs without.

    Args:
        directory: The directory.
        patience: Seconds to wait for whoever holds it.

    Raises:
        LockedError: Another process holds it after that.
    """
    make_directory(directory)
    if sys.platform == "win32":
        yield
        return
    with _opened(directory, os.O_RDONLY) as descriptor:
        deadline = time.monotonic() + patience
        while not try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise LockedError(f"{directory}: another process is writing here. Wait for it, or stop it.")
            time.sleep(_POLL)
        yield


def try_lock(descriptor: int) -> bool:
    """Take the lock on an open file or directory if nobody holds it. Not for Windows."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    import fcntl

    descriptor = os.open(path, flags, 0o666)
    try:
        yield descriptor
    finally:
        fcntl.flock(
            descriptor, fcntl.LOCK_UN
        )  # closing isn't enough if a forked child has the descriptor, too
        os.close(descriptor)
