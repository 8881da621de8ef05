"""Which processes belong to a benchmark: itself, and those that it has started."""

from __future__ import annotations

import contextlib
from pathlib import Path


def family(process: int) -> list[int]:
    """A process and those that it has started. Linux only."""
    found = [process]
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            for child in file.read_text().split():
                found += family(int(child))
    return found
