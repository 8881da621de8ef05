"""Files that only their owner can have written: what a process may load as machine code.

A directory is used if it belongs to this user or to root, isn't a link, and nobody else can write in it. A file's name
holds the SHA-256 of what was put there, so that a damaged one is known before it is loaded.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path

from manytune.atomic import flush_directory

_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def private_directory(path: Path) -> Path:
    """Make a directory that its owner alone can write in, or check that there is one.

    One of this user's that others can write in is emptied and closed to them: what is in it may be theirs.

    Raises:
        OSError: It can't be made, is a link or no directory, or belongs to another user.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = path.lstat()
    if not stat.S_ISDIR(state.st_mode):
        raise OSError(f"{path}: expected a directory, found a link or a file; remove it")
    if state.st_uid not in _trusted():
        raise OSError(
            f"{path}: it belongs to another user (uid {state.st_uid}); set MANYTUNE_CACHE to a directory of "
            "your own"
        )
    if state.st_mode & _BY_OTHERS:
        path.chmod(0o700)
        for found in path.iterdir():
            if found.is_dir() and not found.is_symlink():
                shutil.rmtree(found)
            else:
                found.unlink()
    return path


def kept(directory: Path, key: str, suffix: str) -> Path | None:
    """The file that `keep` put into a private directory, if it is as it was then; damaged ones are removed."""
    for path in sorted(directory.glob(f"{key}.*{suffix}")):
        if _is_sound(path):
            return path
        path.unlink(missing_ok=True)
    return None


def keep(made: Path, directory: Path, key: str) -> Path:
    """Move a file into a private directory of the same file system, under a key and the SHA-256 of its content."""
    made.chmod(0o500)
    with made.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    target = directory / f"{key}.{digest}{made.suffix}"
    made.replace(target)
    flush_directory(directory)
    return target


def _is_sound(path: Path) -> bool:
    """Whether a file is its owner's alone, and has the content that its name says."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:  # a link, or not ours to read
        return False
    with os.fdopen(descriptor, "rb") as file:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode) or state.st_uid not in _trusted() or state.st_mode & _BY_OTHERS:
            return False
        return hashlib.file_digest(file, "sha256").hexdigest() == path.suffixes[-2][1:]


def _trusted() -> tuple[int, ...]:
    return (0, os.geteuid()) if hasattr(os, "geteuid") else (0,)
