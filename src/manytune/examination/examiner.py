"""The server's side of examinations: a process that is started when it is needed, asked, and ended at a limit."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from manytune import errors
from manytune.errors import ManytuneError, StoreError
from manytune.examination.directory import Task
from manytune.examination.limits import MEMORY, Limits
from manytune.examination.messages import MessageError, is_silent, receive, send
from manytune.examination.worker import command
from manytune.free_memory import naming_short_memory

_log = logging.getLogger(__name__)

_STARTING = 120.0  # seconds; it takes a tenth of one on a machine with nothing else to do
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0  # seconds between two starts of processes that didn't last
#: What a Python needs to find its libraries. Nothing else of the environment is handed on: it may hold keys.
_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "SYSTEMROOT")
_AGAIN = "An ordinary one takes milliseconds. Add the adapter again from its source."


@dataclass(frozen=True)
class Verdict:
    """What an examination has found.

    Attributes:
        fields: What the adapter's prompt templates name.
        refused: Why it is refused, and what to do; None if it isn't.
        kind: The class of that error.
    """

    fields: tuple[str, ...] = ()
    refused: str | None = None
    kind: type[ManytuneError] = StoreError

    def require(self) -> Verdict:
        """The same, unless it is a refusal.

        Raises:
            ManytuneError: It is.
        """
        if self.refused is not None:
            raise self.kind(self.refused)
        return self


class _EndedError(Exception):
    """The process is gone, or has to be ended."""

    def __init__(self, reason: str, *, maybe_others: bool) -> None:
        super().__init__(reason)
        self.maybe_others = maybe_others  # what is left of former examinations may have caused it


class Examiner:
    """Examines one directory at a time in a process of its own. Any number of threads may use it.

    Args:
        limits: What one examination may take.
        program: The module that the process runs.
    """

    def __init__(self, limits: Limits | None = None, program: str = "manytune.examination.worker") -> None:
        self._limits = limits if limits is not None else Limits()
        self._program = program
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._is_fresh = False  # it has been asked nothing yet
        self._short_lives = 0  # processes in succession that have ended without an answer
        self._not_before = 0.0
        atexit.register(self.close)

    def begin(self) -> None:
        """Start the process, if there is none, without waiting for it."""
        if self._lock.acquire(blocking=False):
            try:
                if self._process is None:
                    self._launch()
            finally:
                self._lock.release()

    def examine(self, directory: Path, *, root: Path | None = None, max_bytes: int = 0) -> Verdict:
        """Examine an adapter's directory.

        Args:
            directory: The directory.
            root: The store that it is in; None for a source, from which it is to be copied.
            max_bytes: Largest size of a stored adapter's tensors.

        Raises:
            StoreError: There can't be such a process.
            ShortMemoryError: There isn't enough memory for one now.
        """
        path = os.path.abspath(directory)
        task = Task(path, None if root is None else os.path.abspath(root), max_bytes)
        with self._lock:
            reason = ""
            for _ in range(2):
                self._make_ready()
                was_fresh = self._is_fresh
                try:
                    return self._ask(task)
                except _EndedError as error:
                    reason = str(error)
                    self._stop()
                    _log.warning("%s: %s", directory, reason)
                    if was_fresh or not error.maybe_others:
                        break
                except BaseException:  # else the next question would get this one's answer
                    self._stop()
                    raise
        return Verdict(refused=f"{path}: {reason}. {_AGAIN}")

    def require_source(self, directory: Path) -> None:
        """Examine the directory of an adapter that is to be copied.

        Raises:
            ManytuneError: It is refused, or can't be examined.
        """
        self.examine(directory).require()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._stop()
            self._short_lives, self._not_before = 0, 0.0

    # -- parts

    def _ask(self, task: Task) -> Verdict:
        assert self._channel is not None
        limits, self._is_fresh = self._limits, False
        deadline = time.monotonic() + limits.seconds
        try:
            send(self._channel, asdict(task), deadline=deadline)
            answer = receive(self._channel, limits.answer, deadline=deadline)
        except TimeoutError:
            reason = f"its examination took longer than {limits.seconds:g} s"
            raise _EndedError(reason, maybe_others=False) from None
        except MessageError as error:
            raise _EndedError(f"its examination answered with {error}", maybe_others=False) from None
        except (EOFError, OSError):
            raise self._ended() from None
        if (limit := answer.get("limit")) is not None:  # the process may have too little left for others
            memory = f"took more than {limits.memory >> 20:,} MiB of memory"
            reason = memory if limit == MEMORY else f"met a limit of its process ({limit})"
            raise _EndedError(f"its examination {reason}", maybe_others=True)
        self._short_lives = 0
        verdict = _verdict_of(answer)
        if verdict is None:
            raise _EndedError("its examination gave no answer that can be read", maybe_others=False)
        return verdict

    def _ended(self) -> _EndedError:
        code = self._stop()
        if code == -signal.SIGXCPU:
            reason = f"its examination took more than {self._limits.cpu_seconds} s of computing"
            return _EndedError(reason, maybe_others=False)
        how = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit status {code}"
        return _EndedError(f"its examination ended without an answer ({how})", maybe_others=True)

    def _make_ready(self) -> None:
        """Have a process that waits for a question."""
        if self._channel is not None and not self._is_fresh:
            if is_silent(self._channel):
                return
            self._stop()  # nobody has asked it anything: it was ended, or says what it shouldn't
        if self._channel is None:
            self._launch()
        assert self._channel is not None
        try:
            absent = receive(self._channel, 1 << 16, deadline=time.monotonic() + _STARTING).get("without")
        except (TimeoutError, EOFError, OSError, MessageError) as error:
            code = self._stop()
            raise StoreError(
                f"adapters can't be examined: {sys.executable} -m {self._program} ended with {code} before it was "
                f"ready ({type(error).__name__}). Is there enough memory, and may this process start others?"
            ) from error
        if absent:
            _log.warning("adapters are examined without limits that this system doesn't have: %s", absent)

    def _launch(self) -> None:
        time.sleep(max(0.0, self._not_before - time.monotonic()))
        ours, theirs = socket.socketpair()
        try:
            with naming_short_memory("starting the process that examines adapters"):
                self._process = subprocess.Popen(  # noqa: S603  # this program
                    command(self._program, self._limits),
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=_environment(),
                    cwd="/",
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            raise StoreError(
                f"adapters can't be examined: no process can be started for it ({error})."
            ) from error
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._channel, self._is_fresh = ours, True

    def _stop(self) -> int:
        """End the process, if there is one, with all that it has started; returns its status."""
        if self._process is None or self._channel is None:
            return 0
        self._channel.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()  # it tells what had ended it before, if anything had
        self._process = self._channel = None
        pause = min(_LONGEST_PAUSE, _SHORTEST_PAUSE * 2.0**self._short_lives)
        self._short_lives = min(self._short_lives + 1, 10)
        self._not_before = time.monotonic() + pause
        return code


@functools.cache
def shared_examiner() -> Examiner:
    """The examiner of this process, which all its servers share."""
    return Examiner()


def _verdict_of(answer: dict[str, Any]) -> Verdict | None:
    refused, kind = answer.get("refused"), getattr(errors, str(answer.get("kind")), None)
    if refused is not None:
        if not (isinstance(kind, type) and issubclass(kind, ManytuneError)):
            kind = StoreError
        return Verdict(refused=str(refused), kind=kind)
    found = answer.get("found")
    fields = found.get("fields") if isinstance(found, dict) else None
    if not isinstance(fields, list) or not all(isinstance(one, str) for one in fields):
        return None
    return Verdict(tuple(fields))


def _environment() -> dict[str, str]:
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return {**kept, "PYTHONPATH": paths, "LC_ALL": "C.UTF-8", "TOKENIZERS_PARALLELISM": "false"}
