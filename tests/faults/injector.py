"""Counts the calls by which a process changes a directory, and lets one of them go wrong: the same one every time.

A point is a call that creates, writes, flushes, renames or removes something below the directory, as Python's own code,
Python's libraries and safetensors make them. `Injector` replaces these calls in this process for good, so it belongs
into a process of its own (`children.py`).
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch

_RENAME, _UNLINK, _LINK, _OPEN = os.rename, os.unlink, os.link, io.open
_RMTREE, _TRUNCATE, _MKDIR = shutil.rmtree, os.truncate, os.mkdir

#: What a fault does at its point, in words of the table.
KINDS = {
    "kill": "SIGKILL before a call",
    "cut": "SIGKILL within a write, or after another call",
    "power": "power cut: what wasn't flushed is lost",
    "full": "the disk is full from a call on",
    "read-only": "the file system is read-only from a call on",
    "io": "the disk reports an error at a call",
}
_ERRORS = {"full": errno.ENOSPC, "read-only": errno.EROFS, "io": errno.EIO}
#: What a full disk still does.
_FREES = ("rename", "unlink", "rmdir", "truncate")


@dataclass(frozen=True)
class Fault:
    """What goes wrong.

    Attributes:
        kind: One of `KINDS`.
        point: At which call, counted from 1.
    """

    kind: str
    point: int

    def __str__(self) -> str:
        return f"{self.kind}@{self.point}"


class Injector:
    """Counts a process's points below a directory.

    Args:
        root: The directory.
        fault: What is to go wrong; None for nothing.
        spare: A directory on the same file system, next to `root`, for what a power cut brings back.

    Attributes:
        points: The calls so far.
    """

    def __init__(self, root: Path, fault: Fault | None, spare: Path) -> None:
        self.points: list[str] = []
        self._root = os.path.realpath(root)
        self._fault = fault
        self._spare = spare
        self._unflushed: dict[int, int] = {}  # inodes of files, and how many of their bytes are on the disk
        self._undo: list[
            tuple[tuple[str, ...], Callable[[], object]]
        ] = []  # entries of directories that aren't on the disk

    def install(self) -> None:
        """Replace the calls."""
        for name in ("mkdir", "rmdir", "unlink", "remove"):
            setattr(os, name, self._on_one_path(name.replace("remove", "unlink"), getattr(os, name)))
        for name in ("rename", "replace"):
            setattr(os, name, self._renaming(getattr(os, name)))
        builtins.open = io.open = self._opening(io.open)  # type: ignore[assignment]
        os.open = self._opening_low(os.open)
        os.fsync = self._flushing  # type: ignore[assignment]
        os.truncate = self._on_one_path("truncate", os.truncate)  # type: ignore[assignment]
        os.sendfile = self._sending(os.sendfile)  # type: ignore[assignment]
        safetensors.torch.serialize_file = self._serializing(safetensors.torch.serialize_file)  # type: ignore[attr-defined]

    # -- a point

    def reach(self, call: str, half: Callable[[], object] | None = None, path: str | None = None) -> bool:
        """Count a call that is about to be made; whether the process is to die right after it.

        Args:
            call: What it is.
            half: Makes half of it.
            path: What an error names, as the real one does of calls that are given a path.
        """
        self.points.append(call)
        fault, here = self._fault, len(self.points)
        if fault is None or here < fault.point:
            return False
        number = _ERRORS.get(fault.kind)
        if number is not None:
            if (fault.kind == "io" and here > fault.point) or (fault.kind == "full" and call in _FREES):
                return False
            if half is not None and fault.kind == "full":
                half()
            raise OSError(number, os.strerror(number), path)
        if fault.kind == "power":
            self._fault = None  # what is undone goes through these calls as well
            self._lose()
        if fault.kind == "cut" and half is None:
            return True
        if fault.kind == "cut" and half is not None:
            half()
        die()

    def _lose(self) -> None:
        """Bring the directory into the state of a disk that has only what was flushed."""
        for folder, _, names in os.walk(self._root):
            for name in names:
                path = os.path.join(folder, name)
                inode = os.lstat(path).st_ino
                if inode in self._unflushed:
                    _TRUNCATE(path, self._unflushed[inode])
        for _, undo in reversed(self._undo):
            try:
                undo()
            except OSError:  # it has gone together with something above it
                continue

    def _concerns(self, path: Any, dir_fd: int | None = None) -> str | None:
        """The absolute path of something below the directory; None if it is elsewhere."""
        if isinstance(path, int):
            found = os.readlink(f"/proc/self/fd/{path}")
        else:
            folder = os.getcwd() if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
            joined = os.path.join(folder, os.fsdecode(path))
            found = os.path.join(os.path.realpath(os.path.dirname(joined)), os.path.basename(joined))
        return found if found.startswith(self._root + "/") or found == self._root else None

    # -- the calls

    def _on_one_path(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *given: Any, dir_fd: int | None = None, **named: Any) -> Any:
            concerned = self._concerns(path, dir_fd)
            more = {} if dir_fd is None else {"dir_fd": dir_fd}
            if concerned is None:
                return real(path, *given, **more, **named)
            ends = self.reach(name, path=concerned)
            kept = self._kept(concerned) if name == "unlink" else None
            found = real(path, *given, **more, **named)
            if name == "mkdir":
                self._note(concerned, lambda: _RMTREE(concerned))
            elif name == "rmdir":
                self._note(concerned, lambda: _MKDIR(concerned))
            elif kept is not None:
                self._note(concerned, lambda: _LINK(kept, concerned))
            return die() if ends else found

        return call

    def _renaming(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def rename(source: Any, target: Any, **named: Any) -> None:
            here = self._concerns(target)
            before = self._concerns(source)
            if here is None or before is None:
                return real(source, target, **named)
            ends = self.reach("rename", path=before)
            kept = self._kept(here)
            real(source, target, **named)

            def undo() -> None:
                _RENAME(here, before)
                if kept is not None:
                    _LINK(kept, here)

            # On the disk as soon as either directory is: it has gone from the one, or is in the other.
            self._undo.append(((os.path.dirname(here), os.path.dirname(before)), undo))
            if ends:
                die()

        return rename

    def _opening(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", buffering: int = -1, *given: Any, **named: Any) -> Any:
            writes = bool(set(mode) & set("wax+"))
            concerned = self._concerns(file) if writes and not isinstance(file, int) else None
            if concerned is None:
                return real(file, mode, buffering, *given, **named)
            is_new = not os.path.lexists(concerned)
            ends = self.reach("create", path=concerned) if "r" not in mode else False
            raw = _Raw(self, concerned, mode.replace("b", "").replace("t", ""))
            if is_new:
                self._note(concerned, lambda: _UNLINK(concerned))
            if ends:
                die()
            if "b" in mode and buffering == 0:
                return raw
            buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffer if "b" in mode else io.TextIOWrapper(buffer, *given, **named)

        return opened

    def _opening_low(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            concerned = self._concerns(path, dir_fd) if flags & os.O_CREAT else None
            if concerned is None or os.path.lexists(concerned):
                return int(real(path, flags, mode, dir_fd=dir_fd))
            ends = self.reach("create", path=concerned)
            descriptor = int(real(path, flags, mode, dir_fd=dir_fd))
            self._note(concerned, lambda: _UNLINK(concerned))
            return die() if ends else descriptor

        return opened

    def _flushing(self, descriptor: int) -> None:
        """Not the real one, for which only a disk that loses its power makes a difference."""
        flushed = os.readlink(f"/proc/self/fd/{descriptor}")
        ends = self.reach("fsync") if self._concerns(descriptor) is not None else False
        self._unflushed.pop(os.fstat(descriptor).st_ino, None)
        self._undo = [(folders, undo) for folders, undo in self._undo if flushed not in folders]
        if ends:
            die()

    def _sending(self, real: Callable[..., int]) -> Callable[..., int]:
        def send(target: int, source: int, offset: int, count: int) -> int:
            concerned = self._concerns(target)
            if concerned is None or os.fstat(source).st_size <= (offset or 0):
                return real(target, source, offset, count)
            size = os.fstat(source).st_size - (offset or 0)
            ends = self.reach("write", lambda: real(target, source, offset, max(1, min(size, count) // 2)))
            sent = real(target, source, offset, count)
            self.wrote(target, flushed=0)
            return die() if ends else sent

        return send

    def _serializing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def serialize(tensors: Any, file: Any, metadata: Any = None) -> Any:
            concerned = self._concerns(file)
            if concerned is None:
                return real(tensors, file, metadata=metadata)

            def half() -> None:
                real(tensors, file, metadata=metadata)
                _TRUNCATE(concerned, os.stat(concerned).st_size // 2)

            try:
                ends = self.reach("write", half)
            except OSError as error:
                raise safetensors.SafetensorError(
                    f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})"
                ) from None
            real(tensors, file, metadata=metadata)
            self._unflushed[os.stat(concerned).st_ino] = 0
            self._note(concerned, lambda: _UNLINK(concerned))
            return die() if ends else None

        return serialize

    # -- what isn't flushed

    def wrote(self, descriptor: int, *, flushed: int) -> None:
        """Note that a file has content that isn't on the disk, unless that is known; so many bytes of it are."""
        self._unflushed.setdefault(os.fstat(descriptor).st_ino, flushed)

    def _note(self, path: str, undo: Callable[[], object]) -> None:
        self._undo.append(((os.path.dirname(path),), undo))

    def _kept(self, path: str) -> str | None:
        """A second link to a file that is about to go, where only a power cut finds it."""
        if self._fault is None or self._fault.kind != "power" or not os.path.isfile(path):
            return None
        kept = str(self._spare / f"{len(self.points)}")
        _LINK(path, kept)
        return kept


class _Raw(io.FileIO):
    """A file below the directory, opened for writing."""

    def __init__(self, injector: Injector, path: str, mode: str) -> None:
        super().__init__(path, mode)
        self._injector = injector

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        write = super().write
        ends = self._injector.reach("write", lambda: write(view[: len(view) // 2]))
        before = os.fstat(self.fileno()).st_size
        written = write(view)
        self._injector.wrote(self.fileno(), flushed=before)
        return die() if ends else written


def die() -> NoReturn:
    """As if somebody had sent SIGKILL right now."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("the process is still alive")
