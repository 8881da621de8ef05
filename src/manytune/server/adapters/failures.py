"""How often, and how at last, adapters couldn't be used since the server started."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class Failures:
    """The errors of one version of an adapter.

    Attributes:
        digest: The version.
        count: How many there were.
        last: The last message.
    """

    digest: str
    count: int
    last: str


class FailureCounts:
    """Failures by adapters' names. Any number of threads may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, Failures] = {}

    def record(self, name: str, digest: str, message: str) -> None:
        """Count that a version of an adapter couldn't be used."""
        with self._lock:
            former = self._found.get(name)
            count = former.count if former is not None and former.digest == digest else 0
            self._found[name] = Failures(digest, count + 1, message)

    def of(self, name: str, digest: str) -> Failures | None:
        """Those of a version of an adapter; None if there were none."""
        with self._lock:
            found = self._found.get(name)
        return found if found is not None and found.digest == digest else None
