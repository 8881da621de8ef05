"""vLLM as a process of its own, which ends with this one, and whose last lines are at hand if it fails."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from manytune.errors import ServeError

_log = logging.getLogger("manytune.vllm")
_KEPT = 30  # lines
_LONGEST = 1000  # characters of a line
_POLL = 0.1
_PR_SET_PDEATHSIG = 1


class VllmProcess:
    """A running vLLM. Its output goes to the log line by line.

    Args:
        command: Its command line.
        environment: Its environment.

    Attributes:
        on_exit: Called, from a thread, when it has ended without `stop`.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.on_exit: Callable[[], None] = lambda: None
        self._lines: deque[str] = deque(maxlen=_KEPT)
        self._is_stopping = False
        self._process = subprocess.Popen(  # noqa: S603 - the operator's own executable
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C is for manytune, which lets running answers end
            preexec_fn=_ended_with_its_parent(),
        )
        self._reader = threading.Thread(target=self._read, name="vllm-log", daemon=True)
        self._reader.start()

    @property
    def failure(self) -> str | None:
        """How it ended, with the last lines of its output; None while it runs, and once it was stopped."""
        status = self._process.poll()
        if status is None or self._is_stopping:
            return None
        self._reader.join(2)
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return f"vLLM ended with {how}. Its last lines:\n" + "\n".join(self._lines)

    def wait_until(self, is_ready: Callable[[], bool]) -> None:
        """Wait until it answers, for as long as it runs: to load a large base takes minutes.

        Raises:
            ServeError: It has ended; with the last lines of its output.
        """
        while not is_ready():
            if self.failure is not None:
                raise ServeError(self.failure)
            time.sleep(_POLL)

    def stop(self, patience: float) -> None:
        """End it, and whatever it has started.

        Args:
            patience: Seconds until it is killed.
        """
        self._is_stopping = True
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                _log.warning("vLLM didn't end in time; it is killed")
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its workers too
        self._process.wait()
        self._reader.join(2)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                text = line.decode(errors="replace").rstrip()[:_LONGEST]
                if text:
                    self._lines.append(text)
                    _log.info("%s", text)
        self._process.wait()
        if not self._is_stopping:
            self.on_exit()


def _ended_with_its_parent() -> Callable[[], None] | None:
    """What has the system end a new process when the thread that starts it ends, killed or not; Linux alone has it."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return ask
