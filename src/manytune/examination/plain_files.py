"""Whether a stored adapter's files are plain, few and not too large: found out before any of them is opened."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from manytune.errors import StoreError

_MAX_FILES = 1000
_MAX_TEXT = 16 << 20  # bytes of a file that isn't tensors
_ADD_AGAIN = "Add the adapter again from its source."


def check_files(root: Path, directory: Path, *, max_bytes: int) -> None:
    """Check that an adapter's directory is inside the store, and that its files are plain, few and not too large.

    Args:
        root: The store's directory.
        directory: The adapter's directory.
        max_bytes: Largest size of its tensors.

    Raises:
        StoreError: A link leads out of the store, something isn't a plain file, or a file is too large to be read.
    """
    if not directory.resolve().is_relative_to(root.resolve()):
        raise StoreError(f"{directory}: this leads out of the store. {_ADD_AGAIN}")
    for count, path in enumerate((directory, *_below(directory))):
        kind = path.lstat()
        if stat.S_ISLNK(kind.st_mode):
            raise StoreError(f"{path}: a served adapter can't contain a symbolic link. {_ADD_AGAIN}")
        if not stat.S_ISREG(kind.st_mode) and not stat.S_ISDIR(kind.st_mode):
            raise StoreError(f"{path}: expected a plain file. {_ADD_AGAIN}")
        most = max_bytes + _MAX_TEXT if path.suffix == ".safetensors" else _MAX_TEXT
        if stat.S_ISREG(kind.st_mode) and kind.st_size > most:
            raise StoreError(
                f"{path}: {kind.st_size:,} bytes; this server accepts up to {most:,}. Give it more --adapter-memory."
            )
        if count > _MAX_FILES:
            raise StoreError(
                f"{directory}: expected at most {_MAX_FILES:,} files in an adapter; there are more. {_ADD_AGAIN}"
            )


def _below(directory: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(directory):
        yield from (Path(folder, name) for name in chain(folders, names))
