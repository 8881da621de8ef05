"""Where the progress of an experiment goes."""

from __future__ import annotations

import sys
from typing import Protocol

from manytune.store.run_log import Report


class Reporter(Protocol):
    """Receives what happens while it happens."""

    def line(self, text: str) -> None:
        """A stage, or a doubt."""

    def training(self, report: Report) -> None:
        """A step or a validation of the training that is going on."""

    def answering(self, what: str, done: int, total: int) -> None:
        """How many of the answers that are being given are done."""


class StageLines:
    """Prints stages only, on stderr, so that the lines of several processes stay readable next to each other."""

    def line(self, text: str) -> None:
        """Print a stage."""
        print(text, file=sys.stderr, flush=True)

    def training(self, report: Report) -> None:
        """Print nothing."""

    def answering(self, what: str, done: int, total: int) -> None:
        """Print nothing."""
