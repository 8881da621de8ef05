"""Files and directories that are either whole or absent.

Everything manytune keeps is first written next to its target under a recognisable temporary name, flushed to
the disk, and renamed. A process that is killed at any moment leaves the target as it was, or complete, and
at worst a leftover that `clean_leftovers` finds by its name.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from manytune.errors import StoreError, TargetExistsError, WriteError, reason_of

_WRITING = ".manytune-tmp-"  # a target that isn't complete
_REPLACED = ".manytune-old-"  # a complete directory that was moved away to make room for its successor


_OF_RUST = re.compile(r"\(os error (\d+)\)|code: (\d+)")
_REASONS = {
    errno.ENOSPC: "no space is left on the disk. Free some, and run the command again",
    errno.EDQUOT: "your share of the disk is used up. Free some space, and run the command again",
    errno.EFBIG: "a file would be larger than is allowed here (`ulimit -f`). Raise the limit, or write somewhere else",
    errno.EROFS: "the file system is read-only. Write somewhere else",
    errno.EACCES: "permission is missing. Get access to it, or use another place",
    errno.EPERM: "permission is missing. Get access to it, or use another place",
    errno.ENOTDIR: "a part of the path is a file. Write into a directory",
    errno.EIO: "the disk reports an error. Check it, or use another place",
    errno.ENAMETOOLONG: "the name is too long: each part of a path may have 255 bytes. Choose a shorter one",
    errno.ELOOP: "its links lead in a circle. Name the place itself",
    errno.EISDIR: "this is a directory. Name a file in it",
}


def write_error(error: Exception, path: Path | None = None) -> WriteError | None:
    """Return an error that names what can't be written, why, and what to do; None for an error of another kind.

    Args:
        error: What was raised while something was written.
        path: What was written, if the error doesn't say.
    """
    named: object = None
    if isinstance(error, StoreError):
        return None
    if isinstance(error, OSError):
        number, named = error.errno, error.filename2 or error.filename
    else:  # safetensors is written in Rust, and has the system's error in its text
        found = _OF_RUST.search(str(error)) if type(error).__name__ == "SafetensorError" else None
        number = int(found[1] or found[2]) if found else None
    reason = _REASONS.get(number or 0)
    if reason is None:
        return None
    is_own = named is None or any(kind in str(named) for kind in (_WRITING, _REPLACED))
    where = path if is_own and path is not None else named
    return WriteError(f"{where or 'a file'}: {reason}.")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Let a block write a file, and name it in an error of the disk's.

    Raises:
        WriteError: The disk is full or read-only, permission is missing, or nothing can have this name.
    """
    try:
        yield
    except Exception as error:
        found = write_error(error, path) or _unwritable(error, path)
        if found is None:
            raise
        raise found from error


def _unwritable(error: Exception, path: Path) -> WriteError | None:
    """Return an error that says why nothing can be written at a path, if an error is about that path."""
    if isinstance(error, ValueError) and "\0" in str(path):
        return WriteError(f"{str(path)!r}: no name may have a NUL in it. Choose another one.")
    if not isinstance(error, OSError) or isinstance(error, StoreError) or error.errno is None:
        return None
    named = error.filename2 or error.filename
    if named is not None:
        other = Path(os.fsdecode(named))
        is_own = other == path or any(kind in other.name for kind in (_WRITING, _REPLACED))
        if other.parent != path.parent or not is_own:
            return None
    if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
        return WriteError(f"{path}: there is no directory {path.parent}. Make it, or write somewhere else.")
    reason = "no file can be made here" if isinstance(error, FileNotFoundError) else reason_of(error)
    return WriteError(f"{path}: it can't be written ({reason}). Write somewhere else.")


@contextmanager
def atomic_file(path: Path, *, within: Path | None = None) -> Iterator[Path]:
    """Let a block write a file that appears under its name only when it is complete and on the disk.

    The block receives the path of a temporary file, which it creates. When it ends, the file is flushed and renamed to
    `path`, whose former content it replaces; when it raises, the temporary file is removed and `path` is as it was.

    Args:
        path: The file; its directory must exist.
        within: Directory of the temporary file, on the same file system; None is the target's own.

    Raises:
        WriteError: The disk is full or read-only, permission is missing, or something that is no file is at `path`.
    """
    require_file(path)
    temporary = _sibling(path, _WRITING) if within is None else within / secrets.token_hex(8)
    with explained(path):
        try:
            yield temporary
            if not temporary.exists():  # a mistake of the block's, and none of the place
                raise FileNotFoundError(f"{temporary} wasn't written")
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        flush_directory(path.parent)


def atomic_write(path: Path, content: bytes | str, *, within: Path | None = None) -> None:
    """Write a file so that readers see the old content or the new, never a part.

    Args:
        path: The file; its directory must exist.
        content: What the file will hold; text is written as UTF-8.
        within: See `atomic_file`.
    """
    with atomic_file(path, within=within) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_directory(
    path: Path, *, existing: Literal["error", "keep", "replace"] = "error"
) -> Iterator[Path]:
    """Fill a directory that appears under its name only when it is complete and on the disk.

    The block receives a temporary directory next to `path`. When it ends, every file in it is flushed and
    the directory is renamed to `path`; when it raises, the temporary directory is removed and `path` is as
    it was.

    Args:
        path: The directory to create. Missing parents are created.
        existing: What to do when `path` exists at the end: refuse, keep it and drop the new one (two
            processes that fill the same cache), or put the new one in its place. Directories can't be
            exchanged in one step on every system, so a replaced one is moved aside first; `clean_leftovers`
            moves it back if the process died there.

    Raises:
        TargetExistsError: `path` exists and `existing` is "error".
        WriteError: The disk is full or read-only, or permission is missing.
    """
    if existing == "error":
        require_absent(path)
    temporary = _sibling(path, _WRITING)
    with explained(path):
        make_directory(path.parent)
        temporary.mkdir()
        try:
            yield temporary
            flush_tree(temporary)
            _move_into_place(temporary, path, existing)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        flush_directory(path.parent)


def require_file(path: Path) -> None:
    """Refuse a place for a file that is a directory, a device or a pipe: a rename would put the file in its stead.

    Raises:
        WriteError: There is something at `path` that isn't a file, or nothing can be there.
    """
    with explained(path):
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return
    if stat.S_ISDIR(mode):
        raise WriteError(f"{path}: this is a directory. Name a file in it.")
    if not stat.S_ISREG(mode):
        raise WriteError(f"{path}: this isn't a file, but a device or a pipe. Name a file.")


def require_writable(path: Path) -> None:
    """See that a file can be written at a path, before work begins whose result goes there; nothing of it remains.

    Raises:
        WriteError: See `atomic_file`.
    """
    require_file(path)
    with explained(path):
        temporary = _sibling(path, _WRITING)
        temporary.touch(exist_ok=False)
        temporary.unlink()


def require_absent(path: Path) -> None:
    """Refuse to write over something.

    Raises:
        TargetExistsError: There is something at `path`.
        WriteError: Nothing can be there.
    """
    with explained(path):
        is_there = path.exists() or path.is_symlink()  # one that leads nowhere
    if is_there:
        raise TargetExistsError(f"{path} exists already. Remove it, or write somewhere else.")


def clean_leftovers(directory: Path, *, older_than: float = 0.0) -> list[Path]:
    """Remove what killed processes left in a directory, and finish what they began.

    An unfinished file or directory is removed. A directory that was moved aside is moved back if its
    successor never arrived, and removed otherwise.

    Args:
        directory: Where to look; not recursive. Need not exist.
        older_than: Skip anything that changed within this many seconds: another process may be writing it.

    Returns:
        The leftovers that were dealt with, in the order of their names.
    """
    if not directory.is_dir():
        return []
    found = []
    for leftover in sorted(directory.iterdir()):
        kind = next((kind for kind in (_WRITING, _REPLACED) if kind in leftover.name), None)
        if kind is None or not leftover.name.startswith("."):
            continue
        try:
            if older_than and time.time() - leftover.stat().st_mtime < older_than:
                continue
        except FileNotFoundError:  # the process that wrote it finished meanwhile
            continue
        target = leftover.with_name(leftover.name[1:].rpartition(kind)[0])
        if kind == _REPLACED and not target.exists():
            leftover.rename(target)
        elif leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
        found.append(leftover)
    return found


def is_leftover(path: Path) -> bool:
    """Whether a path's name is that of something that isn't written yet, or whose writer was killed."""
    return path.name.startswith(".") and any(kind in path.name for kind in (_WRITING, _REPLACED))


def moved_aside(path: Path) -> Path | None:
    """The complete directory that an interrupted replacement of `path` left; None if there is none."""
    if path.exists() or not path.parent.is_dir():
        return None
    return next(path.parent.glob(f".{glob.escape(path.name)}{_REPLACED}*"), None)


def make_directory(directory: Path) -> None:
    """Create a directory that may be there, and what is missing above it, so that each is on the disk."""
    with explained(directory):
        missing = [path for path in (directory, *directory.parents) if not path.exists()]
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
            raise WriteError(
                f"{directory}: no directory can be made here; a file of this name, or a link to nothing, may be in "
                "the way. Write somewhere else."
            ) from error
        for path in missing:
            flush_directory(path.parent)


def flush_tree(directory: Path) -> None:
    """Make sure that a directory and everything in it is on the disk."""
    for folder, _, files in os.walk(directory):
        for name in files:
            with (Path(folder) / name).open("rb+") as file:
                os.fsync(file.fileno())
        flush_directory(Path(folder))


def flush_directory(directory: Path) -> None:
    """Make sure that a directory's entries are on the disk: what was created, renamed or removed in it."""
    if os.name == "nt":  # Windows can't open a directory; its renames are journalled
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move_into_place(temporary: Path, path: Path, existing: str) -> None:
    if existing == "replace" and path.exists():
        replaced = _sibling(path, _REPLACED)
        path.rename(replaced)
        temporary.rename(path)
        shutil.rmtree(replaced)
        return
    try:
        temporary.rename(path)
    except OSError as error:  # POSIX refuses to rename onto a directory that isn't empty
        if not path.is_dir():
            raise
        if existing == "error":
            raise TargetExistsError(
                f"{path} was created by another process meanwhile; it was kept."
            ) from error


def _sibling(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}{kind}{secrets.token_hex(4)}")
