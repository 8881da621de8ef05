"""A program for the examiner: to a directory with a file `attack` it does what that says, else what it should."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from manytune.examination.directory import Task, examine_directory
from manytune.examination.worker import serve


def wait(directory: Path) -> None:
    while not (directory / "go").exists():
        time.sleep(0.01)


def compute(_: Path) -> None:
    while True:
        pass


def allocate(_: Path) -> None:
    kept = []
    while True:
        kept.append(bytearray(1 << 20))


def write(directory: Path) -> None:
    (directory / "written").write_text("x" * 10_000)


def open_many(_: Path) -> None:
    kept = []
    while True:
        kept.append(os.open(os.devnull, os.O_RDONLY))


def fork(_: Path) -> None:
    while True:  # the superuser always may, so that nothing but the end of its group ends it
        if os.fork() == 0:
            time.sleep(3600)
        time.sleep(0.01)


def flood(_: Path) -> list[str]:
    return ["x" * (1 << 20)]


def chatter(_: Path) -> None:
    os.write(0, b"\0\0\0\4null")


def answer_wrong(_: Path) -> list[Any]:
    return [1]


def leave(_: Path) -> None:
    os._exit(3)


def crash(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def panic(_: Path) -> None:
    raise BaseException("as a library in Rust does")


def environment(_: Path) -> list[str]:
    return sorted(os.environ)


def files(_: Path) -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def modules(_: Path) -> list[str]:
    return sorted(sys.modules)


def process(_: Path) -> list[str]:
    return [str(os.getpid())]


ATTACKS: dict[str, Callable[[Path], list[Any] | None]] = {
    one.__name__: one
    for one in (
        *(
            wait,
            compute,
            allocate,
            write,
            open_many,
            fork,
            flood,
            chatter,
            answer_wrong,
            leave,
            crash,
            panic,
        ),
        *(environment, files, modules, process),
    )
}


def examine(task: Task) -> Mapping[str, Any]:
    """Attack, or examine."""
    file = Path(task.directory, "attack")
    said = ATTACKS[file.read_text()](file.parent) if file.is_file() else None
    return examine_directory(task) if said is None else {"fields": said}


if __name__ == "__main__":
    serve(examine)
