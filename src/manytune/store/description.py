"""`store.json`: what makes a directory a store of adapters, and shows whether it can be reached."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from manytune.atomic import atomic_write
from manytune.errors import ManytuneError, StoreError, UnreachableError
from manytune.store.contents import checkpoints_in

_FORMAT = 1
_NAME = "store.json"
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR)

NO_STORE = (
    "there is no store of adapters here. Name another one with --store or MANYTUNE_STORE, or make one by adding an "
    "adapter: manytune adapters add RUN."
)
"""What to say where a store is expected and isn't."""


def is_store(directory: Path) -> bool:
    """Whether a directory is a store of adapters."""
    return (directory / _NAME).is_file()


class StoreDescription:
    """The description of one store. What isn't there may have been removed, or be on a disk that can't be reached.

    Args:
        root: The store's directory; made by the first adapter added.

    Raises:
        StoreError: The directory holds something else, or a store of a newer format.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._was_there = False
        self._check_format()

    @property
    def is_there(self) -> bool:
        """Whether there is a store."""
        found = is_store(self._root)
        self._was_there |= found
        return found

    def require(self) -> None:
        """See that there is a store.

        Raises:
            StoreError: There is none.
        """
        if not self.is_there:
            raise StoreError(f"{self._root}: {NO_STORE}")

    def write(self, **about: str) -> None:
        """Make the directory a store, before anything else is in it.

        Args:
            about: What else to write down for those who find the directory.
        """
        atomic_write(self._root / _NAME, json.dumps({"format": _FORMAT, **about}) + "\n")

    def require_reachable(self) -> None:
        """See that the store, if there was one, is still there.

        Raises:
            UnreachableError: It isn't, or the system can't say.
        """
        before = self._was_there
        try:
            found = self.is_there
        except OSError as error:
            raise _unreachable(self._root, error) from error
        if before and not found:
            raise UnreachableError(
                f"{self._root}: the store was here and isn't now. Mount it again, or restore it; what is in memory is "
                "served meanwhile."
            )

    @contextmanager
    def naming_unreachable(self) -> Iterator[None]:
        """Within this context, what fails since the store can't be reached isn't blamed on an adapter.

        Raises:
            UnreachableError: The store isn't there, or the disk or the network reports an error.
        """
        try:
            yield
        except UnreachableError:
            raise
        except OSError as error:
            if not isinstance(error, ManytuneError) and error.errno not in _NOT_THERE:
                raise _unreachable(self._root, error) from error
            self.require_reachable()
            raise
        except Exception:
            self.require_reachable()
            raise

    def _check_format(self) -> None:
        file = self._root / _NAME
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if self._root.is_dir() and any(not path.name.startswith(".") for path in self._root.iterdir()):
                raise StoreError(_no_store(self._root)) from None
            return
        except NotADirectoryError:
            raise StoreError(
                f"{self._root}: expected a directory, found a file. Name another place."
            ) from None
        except ValueError as error:
            raise StoreError(f"{file}: expected JSON: {error}. {_RESTORE}") from None
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise StoreError(
                f"{file}: expected format {_FORMAT}, found {content!r}. A newer manytune may have written it: update. "
                f"{_RESTORE}"
            )
        self._was_there = True


_RESTORE = f'If the file was damaged, restore it: a store has {{"format": {_FORMAT}}} in it.'


def _unreachable(root: Path, error: OSError) -> UnreachableError:
    return UnreachableError(
        f"{root}: the store can't be read ({error.strerror or error}). Check its disk or its network; what is in "
        "memory is served meanwhile."
    )


def _no_store(root: Path) -> str:
    """What to say about a directory that holds something else."""
    inside = checkpoints_in(root)
    if inside:
        return (
            f"{root}: this directory isn't a store of adapters; its subdirectories hold {len(inside)} ({inside[0]} …). "
            f"`manytune serve --adapters {root}` serves them as they are; `manytune adapters add {root}/* --base BASE` "
            "puts copies into a store."
        )
    return (
        f"{root}: this directory isn't a store of adapters, has no subdirectories with an adapter, and isn't empty. "
        "Name another directory."
    )
