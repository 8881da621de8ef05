"""Starting a Ray here, or connecting to the cluster that `RAY_ADDRESS` names; and noticing that it is gone."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from manytune.errors import RunError

_MODE = "RAY_AUTH_MODE"
_PATIENCE = (
    40.0  # seconds without the head; after 60 Ray ends this process itself, and nothing says what to do
)
_CONNECTING, _PAUSE = 5.0, 1.0  # seconds


class HeadLostError(RunError):
    """The head of the cluster can't be reached any more. Whatever asks it for something now waits in vain."""


class Head:
    """The head of the cluster that this process is connected to.

    Args:
        address: Its host and port. If it can't be reached from here even now, as through Ray's client, it isn't
            watched.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._is_watched = self._answers()

    def require(self) -> None:
        """See that it is there; wait for it if it isn't, as it may be started again.

        Raises:
            HeadLostError: It doesn't come back.
        """
        deadline = time.monotonic() + _PATIENCE
        while self._is_watched and not self._answers():
            if time.monotonic() >= deadline:
                raise HeadLostError(
                    f"the head at {self._address} can't be reached any more, so it has ended, or its machine or the "
                    "network has. Start it again."
                )
            time.sleep(_PAUSE)

    def _answers(self) -> bool:
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECTING).close()
        except (OSError, ValueError):
            return False
        return True


def start_ray(**options: Any) -> None:
    """Start Ray here, or connect to the cluster that `RAY_ADDRESS` names.

    Its own processes must come up within seconds, which a machine that is busy with trainings may not manage, so a
    start that fails is tried once more.

    Args:
        options: Those of `ray.init`, such as what a cluster of this machine declares.

    Raises:
        RunError: It failed twice.
    """
    import ray

    for last in (False, True):
        try:
            ray.init(include_dashboard=False, **options)
            return
        except (RuntimeError, OSError, TimeoutError, ValueError, ray.exceptions.RayError) as error:
            ray.shutdown()
            if last:
                raise RunError(
                    f"Ray could not be started, or not be reached: {str(error).rstrip(' .')}.{_hint()}"
                ) from error


def _hint() -> str:
    """What else may keep a cluster from being reached: `ray start` asks for a token where it finds one."""
    if "RAY_ADDRESS" not in os.environ or _MODE in os.environ:
        return ""
    return f" If the cluster asks for a token, as one may that `ray start` started, set {_MODE}=token."
