from __future__ import annotations

import io
import itertools

import pytest
from rich.console import Console

from manytune.store.run_log import StepReport, ValidationReport
from manytune.training.progress import Every, ProgressDisplay, duration


def step(number: int, total: int = 40) -> StepReport:
    return StepReport(
        step=number,
        total_steps=total,
        epoch=1.0,
        loss=1.23456,
        learning_rate=1e-4,
        grad_norm=1.0,
        tokens=1000 * number,
        step_seconds=2.0 * number,
        seconds=3.0 * number,
    )


def shown(*reports: StepReport | ValidationReport, terminal: bool) -> str:
    """What is displayed of reports that come every three seconds."""
    stream, seconds = io.StringIO(), itertools.count(0, 3)
    every = Every(30, lambda: float(next(seconds)))
    with ProgressDisplay(Console(file=stream, force_terminal=terminal, width=60), every) as display:
        for report in reports:
            display(report)
    return stream.getvalue()


def test_throughput_counts_training_time_and_the_time_left_counts_everything() -> None:
    assert step(10).tokens_per_second == 500
    assert step(10).seconds_left == 90


def test_without_a_terminal_a_run_prints_a_step_every_30_seconds_and_its_validations() -> None:
    lines = shown(
        *(step(n) for n in range(1, 36)), ValidationReport(35, 35, 0.5, 1.0), terminal=False
    ).splitlines()
    assert lines[0] == "step 1/40  loss 1.235  500 tok/s  1 min 57 s left"
    assert [line.split()[1] for line in lines] == ["1/40", "10/40", "20/40", "30/40", "35/35"]
    assert lines[-1] == "step 35/35  validation 0.500"


def test_the_first_step_after_an_interruption_and_the_last_one_are_printed() -> None:
    lines = shown(*(step(n) for n in range(38, 41)), terminal=False).splitlines()
    assert [line.split()[1] for line in lines] == ["38/40", "40/40"]


def test_on_a_terminal_one_line_is_redrawn_and_fits_sixty_columns() -> None:
    text = shown(step(1), ValidationReport(1, 40, 0.5, 1.0), step(39), terminal=True)
    assert "39/40  loss 1.235  500 tok/s  3 s left  val 0.500" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_durations_are_written_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
