"""`log.jsonl` of a run directory: one line a step, and one a validation. A report's fields are its line's keys."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from manytune.atomic import atomic_write, explained


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
        step_seconds: Time spent in training steps since the run began; validation and checkpoints not counted.
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
    """A validation loss, and perhaps scores.

    Attributes:
        step: Optimizer steps done; 0 is the model before training.
        total_steps: Steps of the whole run.
        validation_loss: Mean negative log likelihood per target token over the validation rows, in nats.
        seconds: Time since the run began, interruptions not counted.
        scores: Scores of answers to validation prompts by name; empty if they weren't measured at this step.
    """

    step: int
    total_steps: int
    validation_loss: float
    seconds: float
    scores: Mapping[str, float] = field(default_factory=dict)


Report = StepReport | ValidationReport


class RunLog:
    """Writes `log.jsonl`: a line has left this process before the next step begins.

    A validation that is in what was kept isn't written again: a run that was interrupted after its last step measures
    it once more.

    Args:
        path: The file.
        after: Keep what it says up to this step, and continue there; None begins a new file.
    """

    def __init__(self, path: Path, *, after: int | None) -> None:
        before = () if after is None else read_reports(path)
        kept = [report for report in before if report.step <= (after or 0)]
        atomic_write(path, "".join(map(_line, kept)))
        self._validated = {report.step for report in kept if isinstance(report, ValidationReport)}
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with explained(self._path), self._file:
            if error is None:
                os.fsync(self._file.fileno())

    def flush(self) -> None:
        """See to it that everything written is on the disk."""
        with explained(self._path):
            os.fsync(self._file.fileno())

    def write(self, report: Report) -> None:
        """Append one report."""
        if isinstance(report, ValidationReport) and report.step in self._validated:
            return
        with explained(self._path):
            self._file.write(_line(report))
            self._file.flush()


def read_reports(path: Path) -> tuple[Report, ...]:
    """Read `log.jsonl`; no file has no reports. A line that isn't whole, as a killed process leaves, is passed over."""
    if not path.is_file():
        return ()
    return tuple(_reports(path.read_text(encoding="utf-8", errors="replace").splitlines()))


def _line(report: Report) -> str:
    entry = dataclasses.asdict(report)
    if isinstance(report, StepReport):
        entry["tokens_per_second"] = report.tokens_per_second  # for people who plot it
    elif not report.scores:
        del entry["scores"]
    return json.dumps(entry) + "\n"


def _reports(lines: list[str]) -> Iterator[Report]:
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        for kind in (StepReport, ValidationReport):
            found = _report(kind, entry)
            if found is not None:
                yield found


def _report(kind: type[StepReport] | type[ValidationReport], entry: Any) -> Report | None:
    fields = dataclasses.fields(kind)
    needed = {one.name for one in fields if one.default_factory is dataclasses.MISSING}
    if not isinstance(entry, dict) or not needed <= set(entry):
        return None
    return kind(**{one.name: entry[one.name] for one in fields if one.name in entry})
