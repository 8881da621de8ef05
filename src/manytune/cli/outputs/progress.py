"""How commands that train and ask show what they are doing: bars on a terminal, a line every 30 seconds elsewhere."""

from __future__ import annotations

import time
from concurrent.futures import Future
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from manytune.cli.outputs.lines import print_line
from manytune.store.run_log import Report, ValidationReport
from manytune.training.progress import QUIET, Every, ProgressDisplay, describe, duration

T = TypeVar("T")


def wait_for(work: Future[T], what: str, *, seconds: float = QUIET) -> T:
    """The result of work that another thread does.

    Args:
        work: The work.
        what: What it is, for the lines on stderr.
        seconds: How often to say that it is still being done.
    """
    print_line(f"{what} ...", stderr=True)
    begun = time.monotonic()
    while True:
        try:
            return work.result(timeout=seconds)
        except TimeoutError:
            if work.done():
                raise
        print_line(f"{what}: {duration(time.monotonic() - begun)} so far", stderr=True)


class CommandProgress:
    """Shows progress, inside a `with` block; a `Reporter` of `manytune.experiments`.

    Args:
        console: Where to show it.
        every: When to print how far something is, where there is no terminal.
    """

    def __init__(self, console: Console, every: Every | None = None) -> None:
        self._console = console
        self._every = every or Every()
        self._training: ProgressDisplay | None = None
        self._answering: Progress | None = None
        self._task: tuple[str, TaskID] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def line(self, text: str) -> None:
        """Show a stage, or a doubt."""
        self._close()
        self._console.print(text, markup=False, highlight=False)

    def training(self, report: Report) -> None:
        """Show a step or a validation."""
        if not self._console.is_terminal:
            if isinstance(report, ValidationReport) and report.step in (0, report.total_steps):
                self._console.print(
                    f"  step {report.step}/{report.total_steps}, validation loss {report.validation_loss:.3f}",
                    highlight=False,
                )
            elif not isinstance(report, ValidationReport) and self._every.due():
                self._console.print(f"  step {describe(report)}", highlight=False)
            return
        if self._training is None:
            self._close()
            self._training = ProgressDisplay(self._console)
            self._training.__enter__()
        self._training(report)

    def answering(self, what: str, done: int, total: int) -> None:
        """Show how many answers are done."""
        if not self._console.is_terminal:
            if self._every.due():
                self._console.print(f"  {what}: {done:,} of {total:,}", markup=False, highlight=False)
            return
        if self._answering is None:
            self._close()
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._answering = Progress(*columns, console=self._console)
            self._answering.start()
        if self._task is None or self._task[0] != what:
            self._task = (what, self._answering.add_task(what, total=total))
        self._answering.update(self._task[1], completed=done, total=total)

    def _close(self) -> None:
        if self._training is not None:
            self._training.__exit__(None, None, None)
            self._training = None
        if self._answering is not None:
            self._answering.stop()
            self._answering, self._task = None, None
