"""What a run reports while it trains, and how that is shown: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


@dataclass(frozen=True)
class StepReport:
    """What is known after an optimizer step.

    Attributes:
        step: Optimizer steps done, from 1.
        total_steps: Steps of the whole run.
        epoch: Passes over the rows so far.
        loss: Mean negative log likelihood per target token of this step's rows, in nats.
        learning_rate: The one that this step used.
        grad_norm: The gradient's norm before clipping.
        tokens: Input tokens read since the run began, pad tokens not counted.
        step_seconds: Time spent in training steps since the run began; validation and checkpoints not
        counted.
        seconds: Time since the run began, interruptions not counted.
    """

    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    step_seconds: float
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Training throughput so far."""
        return self.tokens / self.step_seconds if self.step_seconds else 0.0

    @property
    def seconds_left(self) -> float:
        """Expected time to the last step, validation and checkpoints included at their rate so far."""
        return self.seconds / self.step * (self.total_steps - self.step)


@dataclass(frozen=True)
class ValidationReport:
    """A validation loss.

    Attributes:
        step: Optimizer steps done; 0 is the model before training.
        total_steps: Steps of the whole run.
        validation_loss: Mean negative log likelihood per target token over the validation rows, in nats.
        seconds: Time since the run began, interruptions not counted.
    """

    step: int
    total_steps: int
    validation_loss: float
    seconds: float


Report = StepReport | ValidationReport


class ProgressDisplay:
    """Shows a run's reports; call it with each of them, inside a `with` block.

    On a terminal it is one line that is redrawn. Elsewhere it prints about twenty lines a run, and one for
    each validation.

    Args:
        console: Where to show them.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._validation: float | None = None
        self._bar = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
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
                self._line(
                    f"step {report.step}/{report.total_steps}  validation {report.validation_loss:.3f}"
                )
            return
        text = describe(report)
        if self._console.is_terminal:
            validation = "" if self._validation is None else f"  val {self._validation:.3f}"
            self._bar.update(
                self._task, completed=report.step, total=report.total_steps, description=text + validation
            )
        elif report.step in (1, report.total_steps) or report.step % max(1, report.total_steps // 20) == 0:
            self._line(f"step {text}")

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
