"""Where the progress of an experiment goes."""

from __future__ import annotations

import sys
from typing import Protocol

from manytune.store.run_log import Report, ValidationReport
from manytune.training.progress import Every, describe


class Reporter(Protocol):
    """Receives what happens while it happens."""

    def line(self, text: str) -> None:
        """A stage, or a doubt."""

    def training(self, report: Report) -> None:
        """A step or a validation of the training that is going on."""

    def answering(self, what: str, done: int, total: int) -> None:
        """How many of the answers that are being given are done."""


class StageLines:
    """Prints lines on stderr, readable next to those of other processes: stages, and how far they are every 30 seconds.

    Args:
        every: When to print how far a stage is.
    """

    def __init__(self, every: Every | None = None) -> None:
        self._every = every or Every()
        self._stage = ""

    def line(self, text: str) -> None:
        """Print a stage."""
        self._stage = text
        print(text, file=sys.stderr, flush=True)

    def training(self, report: Report) -> None:
        """Print a step, if it is time."""
        if not isinstance(report, ValidationReport) and self._every.due():
            print(f"{self._stage}: step {describe(report)}", file=sys.stderr, flush=True)

    def answering(self, what: str, done: int, total: int) -> None:
        """Print how many there are, if it is time."""
        if self._every.due():
            print(f"{self._stage}: {done:,} of {total:,}", file=sys.stderr, flush=True)
