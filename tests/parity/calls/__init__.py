"""The calls, by what they are about."""

from __future__ import annotations

from tests.parity.calls import attaching, files, mixtures, running, sessions, sums, switching, tables
from tests.parity.calls.call import CALLS, Call

__all__ = [
    "CALLS",
    "Call",
    "attaching",
    "files",
    "mixtures",
    "running",
    "sessions",
    "sums",
    "switching",
    "tables",
]
