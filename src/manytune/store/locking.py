"""One writer at a time, among the threads and processes that share a store or a run's directory."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from manytune.atomic import make_directory
from manytune.errors import LockedError

_HAS_FLOCK = importlib.util.find_spec("fcntl") is not None  # not on Windows
_POLL = 0.01  # seconds between two tries; what is done under the lock takes about as long
_PATIENCE = 60.0


@contextmanager
def locked(file: Path, *, patience: float = _PATIENCE) -> Iterator[None]:
    """Hold a lock while the block runs; wait for whoever holds it.

    The system frees the lock when its holder ends, however that ends, so a killed process blocks nobody.

    Args:
        file: The lock; created if it isn't there, and never removed.
        patience: Seconds to wait.

    Raises:
        LockedError: It is still held after that.
    """
    if not _HAS_FLOCK:
        with _file_lock(file, patience, _held_too_long(file, patience)):
            yield
        return
    with _opened(file, os.O_RDWR | os.O_CREAT) as descriptor:
        deadline = time.monotonic() + patience
        while not try_lock(descriptor):
            if time.monotonic() > deadline:
                raise LockedError(_held_too_long(file, patience))
            time.sleep(_POLL)
        yield


@contextmanager
def held(directory: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a directory for this process while the block runs; it is created if it isn't there.

    The hold ends with the process, however that ends, so nothing has to be cleaned up after a kill. Windows can't hold
    a directory; there a file next to it is held, `.NAME.lock`.

    Args:
        directory: The directory.
        patience: Seconds to wait for whoever holds it.

    Raises:
        LockedError: Another process holds it after that.
    """
    make_directory(directory)
    taken = f"{directory}: another process is writing here. Wait for it, or stop it."
    if not _HAS_FLOCK:
        with _file_lock(directory.with_name(f".{directory.name}.lock"), patience, taken):
            yield
        return
    with _opened(directory, os.O_RDONLY) as descriptor:
        deadline = time.monotonic() + patience
        while not try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise LockedError(taken)
            time.sleep(_POLL)
        yield


def _held_too_long(file: Path, patience: float) -> str:
    return f"{file.parent}: another process has held it for {patience:.0f} s. Wait for it, or stop it."


@contextmanager
def _file_lock(file: Path, patience: float, taken: str) -> Iterator[None]:
    """Hold a file as systems without flock can."""
    import filelock

    lock = filelock.FileLock(file)
    try:
        lock.acquire(timeout=patience, poll_interval=_POLL)
    except filelock.Timeout:
        raise LockedError(taken) from None
    try:
        yield
    finally:
        lock.release()


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
