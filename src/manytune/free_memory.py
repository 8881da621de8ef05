"""How much memory this process can still take, and what is said where that isn't enough.

A process that takes more than there is isn't always told: the system ends it when it writes to memory that it was
promised. So what takes much is compared with what is free beforehand, and what fails nevertheless fails with a name.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from manytune.errors import ShortMemoryError

#: Bytes that stay free for what isn't counted: the interpreter, libraries and their threads.
SPARE = 64 << 20

_SYSTEM = Path("/proc/meminfo")
_SELF = Path("/proc/self")
_GROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 60

#: What libraries say that have no class of error for it.
_WORDS = ("can't allocate memory", "Cannot allocate memory", "can't start new thread", "bad_alloc")
#: What oneDNN says then, and at other times; it is about memory if little is left.
_UNCLEAR = "could not create a primitive"
_LITTLE = 256 << 20


def free_memory() -> int | None:
    """Bytes that this process can still take; None where the system doesn't say.

    It is the least of what the system has available (`MemAvailable`), of what the limits of the process's control
    groups leave, of either version, and of what its limit of address space (`ulimit -v`) leaves.
    """
    known = [one for one in (_available(), _left_of_address_space()) if one is not None]
    known += _left_in_groups(min(known, default=_NO_LIMIT))
    return max(0, min(known)) if known else None


def memory_in_use() -> int | None:
    """Bytes of memory that this process has now (resident set size); None where the system doesn't say."""
    try:
        pages = int((_SELF / "statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def require_memory(needed: int, what: str, *, spare: int = SPARE) -> None:
    """Refuse to begin what the free memory isn't enough for.

    Args:
        needed: Bytes that it will take.
        what: What it is, as the beginning of a sentence.
        spare: Bytes that have to be free afterwards.

    Raises:
        ShortMemoryError: There is less.
    """
    free = free_memory()
    if free is not None and needed + spare > free:
        raise ShortMemoryError(
            f"{what} needs {_mib(needed)} of memory, and {_mib(spare)} have to stay free; {_mib(free)} are. Try again "
            "when other work has ended, or give the process more memory."
        )


@contextmanager
def naming_short_memory(what: str, *, instead: str = "") -> Iterator[None]:
    """Within this context, memory that isn't given raises an error that says for what; see `is_short_memory`.

    Args:
        what: What it is for, as the beginning of a sentence.
        instead: What else helps, as a sentence.

    Raises:
        ShortMemoryError: There isn't enough memory.
    """
    try:
        yield
    except ShortMemoryError:
        raise
    except Exception as error:
        if not is_short_memory(error):
            raise
        raise ShortMemoryError(
            f"{what} needs more memory than there is. Try again when other work has ended, or give the process more "
            f"memory.{instead and ' '}{instead}"
        ) from error


def is_short_memory(error: BaseException) -> bool:
    """Whether an error says that memory wasn't given: Python's, torch's on any device, or the system's."""
    if isinstance(error, MemoryError | ShortMemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, RuntimeError):
        return False
    free = free_memory() if _UNCLEAR in str(error) else None
    return any(words in str(error) for words in _WORDS) or (free is not None and free < _LITTLE)


def _available() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in _SYSTEM.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return None


def _left_in_groups(enough: int) -> Iterator[int]:
    """What each limit leaves that may leave less than `enough`: of the process's own group, and of those above it."""
    try:
        lines = (_SELF / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds == "":
            root, names = _GROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            root = _GROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = root / path.lstrip("/")
        # Inside a container the path may be the host's, and the container's own group is the root.
        for folder in (group, *group.parents):
            left = _left_in(folder, *names, enough)
            if left is not None:
                yield left
            if folder == root:
                break


def _left_in(group: Path, limit_name: str, used_name: str, cached: str, enough: int) -> int | None:
    with suppress(OSError, ValueError):
        limit = int((group / limit_name).read_text())  # "max" for none
        if limit >= _NO_LIMIT:
            return None
        used = int((group / used_name).read_text())
        if limit - used >= enough:
            return None
        lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Pages of files that weren't used lately are dropped before a process is refused memory.
        return limit - used + next((int(value) for name, value in lines if name == cached), 0)
    return None


def _left_of_address_space() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    with suppress(OSError, ValueError, IndexError):
        pages = int((_SELF / "statm").read_text().split()[0])
        return limit - pages * os.sysconf("SC_PAGE_SIZE")
    return None


def _mib(number: int) -> str:
    return f"{number / (1 << 20):,.0f} MiB"
