"""How a run's reports are shown: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from manytune.store.run_log import Report, StepReport, ValidationReport

QUIET = 30.0
"""Seconds after which a command that isn't on a terminal says again how far it is."""


class Every:
    """Says when to print a line again, so that a log shows that something is being done, and is short.

    Args:
        seconds: The time between two lines.
        clock: Returns seconds.
    """

    def __init__(self, seconds: float = QUIET, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._last = clock()

    def due(self) -> bool:
        """Whether the time is up; if so, it begins again."""
        now = self._clock()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


class ProgressDisplay:
    """Shows a run's reports; call it with each of them, inside a `with` block.

    On a terminal it is one line that is redrawn. Elsewhere it prints the first step, the last one, one every 30
    seconds, and each validation.

    Args:
        console: Where to show them.
        every: When to print a step elsewhere.
    """

    def __init__(self, console: Console, every: Every | None = None) -> None:
        self._console = console
        self._every = every or Every()
        self._begun = False
        self._validation: float | None = None
        self._bar = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, report: Report) -> None:
        """Show one report."""
        if isinstance(report, ValidationReport):
            self._validation = report.validation_loss
            if not self._console.is_terminal:
                scores = "".join(f"  {name} {value:.3f}" for name, value in report.scores.items())
                self._line(
                    f"step {report.step}/{report.total_steps}  validation {report.validation_loss:.3f}{scores}"
                )
            return
        text = describe(report)
        if self._console.is_terminal:
            self._bar.start()
            validation = "" if self._validation is None else f"  val {self._validation:.3f}"
            self._bar.update(
                self._task, completed=report.step, total=report.total_steps, description=text + validation
            )
        elif self._every.due() or not self._begun or report.step == report.total_steps:
            self._line(f"step {text}")
        self._begun = True

    def _line(self, text: str) -> None:
        self._console.print(text, highlight=False)


def describe(report: StepReport) -> str:
    """A step in few columns: position, loss, throughput, time left."""
    return (
        f"{report.step}/{report.total_steps}  loss {report.loss:.3f}  "
        f"{report.tokens_per_second:.0f} tok/s  {duration(report.seconds_left)} left"
    )


def duration(seconds: float) -> str:
    """Seconds as people say them: `48 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
