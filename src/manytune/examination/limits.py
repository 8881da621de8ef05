"""What an examination may take. The system holds the process to it, whatever runs in it."""

from __future__ import annotations

import errno
import math
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from manytune.free_memory import is_short_memory

if sys.platform != "win32":  # which has no such limits, and no server
    import resource

_STATM = Path("/proc/self/statm")
_OOM_SCORE = Path("/proc/self/oom_score_adj")
MEMORY = "memory"
"""What `limit_met` says of memory."""
_ERRORS = {errno.EMFILE, errno.ENFILE, errno.EFBIG, errno.EAGAIN, errno.ENOMEM}
_GRACE = 5  # seconds after which the process ends itself, if whoever asked it is gone


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one examination may take; an ordinary one takes milliseconds and a few MiB.

    Attributes:
        seconds: From the question to its answer.
        cpu_seconds: Of computing, which a loaded machine doesn't stretch.
        memory: Bytes of address space, in addition to what the process has before.
        files: Open files.
        answer: Bytes of the answer.
    """

    seconds: float = 30.0
    cpu_seconds: int = 10
    memory: int = 1 << 30
    files: int = 32
    answer: int = 4 << 20


def impose(limits: Limits) -> list[str]:
    """Hold this process to what doesn't change from one examination to the next. It can't be undone.

    It writes no files, leaves no memory image, and starts no processes and threads (which the superuser always may).

    Returns:
        The limits that this system doesn't have.
    """
    with suppress(OSError):  # where memory runs out, this process ends before others do
        _OOM_SCORE.write_text("1000")
    wanted = {
        "memory": (resource.RLIMIT_AS, _address_space() + limits.memory),
        "open files": (resource.RLIMIT_NOFILE, limits.files),
        "written files": (resource.RLIMIT_FSIZE, 0),
        "memory images": (resource.RLIMIT_CORE, 0),
        "processes": (resource.RLIMIT_NPROC, 0),
    }
    absent = []
    for name, (kind, most) in wanted.items():
        try:
            _, highest = resource.getrlimit(kind)
            most = most if highest == resource.RLIM_INFINITY else min(most, highest)
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):
            absent.append(name)
    return absent


def begin(limits: Limits) -> None:
    """Count computing and time from now on."""
    _, highest = resource.getrlimit(resource.RLIMIT_CPU)
    most = math.ceil(time.process_time()) + limits.cpu_seconds
    most = most if highest == resource.RLIM_INFINITY else min(most, highest)
    resource.setrlimit(resource.RLIMIT_CPU, (most, highest))
    signal.alarm(math.ceil(limits.seconds) + _GRACE)


def end() -> None:
    """Wait for the next examination without a limit."""
    signal.alarm(0)


def limit_met(error: BaseException) -> str | None:
    """Which limit an error comes from: `MEMORY`, or in the system's words; None if it comes from none."""
    cause: BaseException | None = error
    while cause is not None:
        if is_short_memory(cause):
            return MEMORY
        if isinstance(cause, OSError) and cause.errno in _ERRORS:
            return os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return None


def _address_space() -> int:
    try:
        return int(_STATM.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux: a guess
        return 1 << 30
