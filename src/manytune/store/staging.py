"""Where a store's files are written before they appear, and moved before they are removed."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from manytune.atomic import atomic_write, explained, flush_directory
from manytune.store.locking import locked, try_lock


class Staging:
    """A directory next to what it serves, on the same file system, and the lock that goes with it.

    A directory that is being filled is held by its writer, and everything else in here belongs to whoever has the lock.
    So with the lock in hand, whatever nobody holds was left by a process that was killed.

    Args:
        directory: Made when it is first used.
        lock: The lock's file.
    """

    def __init__(self, directory: Path, lock: Path) -> None:
        self._directory = directory
        self._lock_file = lock

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock; see `locked`.

        Raises:
            WriteError: What is written meanwhile doesn't go to the disk.
        """
        with explained(self._lock_file.parent), locked(self._lock_file):
            yield

    @contextmanager
    def filling(self) -> Iterator[Path]:
        """A new directory to fill. It is removed at the end unless it was renamed.

        Raises:
            WriteError: What is written meanwhile doesn't go to the disk.
        """
        directory = self._path()
        descriptor = None
        with self.lock():
            self._directory.mkdir(exist_ok=True)
            self._clean()
            directory.mkdir()
            if sys.platform != "win32":
                descriptor = os.open(directory, os.O_RDONLY)
                try_lock(descriptor)  # marks it as being filled
        try:
            with explained(self._lock_file.parent):
                yield directory
        finally:
            if descriptor is not None:
                os.close(descriptor)
            shutil.rmtree(directory, ignore_errors=True)

    def put(self, path: Path, text: str) -> None:
        """Write a file that appears whole, or replaces another at once. With the lock in hand."""
        atomic_write(path, text, within=self._directory)

    def take(self, directory: Path) -> Path:
        """Make a directory disappear at once. With the lock in hand; the caller removes what is returned."""
        self._directory.mkdir(exist_ok=True)
        moved = self._path()
        directory.rename(moved)
        flush_directory(directory.parent)
        return moved

    def _path(self) -> Path:
        return self._directory / secrets.token_hex(8)

    def _clean(self) -> None:
        for path in () if sys.platform == "win32" else self._directory.iterdir():
            if not path.is_dir():
                path.unlink(missing_ok=True)
                continue
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:  # its writer is removing it
                continue
            try:
                if try_lock(descriptor):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


def seal(directory: Path, names: Iterable[str]) -> None:
    """Make files read-only, so that nothing writes into them by mistake; what is to change is replaced."""
    if sys.platform != "win32":  # where a read-only file couldn't be removed
        for name in names:
            (directory / name).chmod(0o444)
