"""What commands say of their progress where there is no terminal."""

import io
import itertools
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

import pytest
from rich.console import Console

from manytune.cli.outputs.progress import CommandProgress, wait_for
from manytune.experiments.reporter import StageLines
from manytune.store.run_log import StepReport, ValidationReport
from manytune.training.progress import Every


def every_ten_seconds() -> Every:
    """A line every 30 seconds, of what is reported every 10."""
    seconds = itertools.count(0, 10)
    return Every(30, lambda: float(next(seconds)))


def step(number: int) -> StepReport:
    return StepReport(
        step=number,
        total_steps=12,
        epoch=1.0,
        loss=0.5,
        learning_rate=1e-4,
        grad_norm=1.0,
        tokens=1000 * number,
        step_seconds=10.0 * number,
        seconds=10.0 * number,
    )


def test_steps_and_answers_are_reported_every_30_seconds() -> None:
    stream = io.StringIO()
    with CommandProgress(Console(file=stream, width=80), every_ten_seconds()) as progress:
        progress.line("training lora")
        progress.training(ValidationReport(0, 12, 2.0, 1.0))
        for number in range(1, 7):
            progress.training(step(number))
        progress.line("asking lora")
        for done in range(1, 7):
            progress.answering("lora: answers", done, 1200)
    assert stream.getvalue().splitlines() == [
        "training lora",
        "  step 0/12, validation loss 2.000",
        "  step 3/12  loss 0.500  100 tok/s  1 min 30 s left",
        "  step 6/12  loss 0.500  100 tok/s  1 min 00 s left",
        "asking lora",
        "  lora: answers: 3 of 1,200",
        "  lora: answers: 6 of 1,200",
    ]


def test_a_worker_names_what_it_trains(capsys: pytest.CaptureFixture[str]) -> None:
    lines = StageLines(every_ten_seconds())
    lines.line("training lora")
    for number in range(1, 4):
        lines.training(step(number))
    lines.line("asking lora")
    for done in range(1, 4):
        lines.answering("answers", done, 8)
    assert capsys.readouterr().err.splitlines() == [
        "training lora",
        "training lora: step 3/12  loss 0.500  100 tok/s  1 min 30 s left",
        "asking lora",
        "asking lora: 3 of 8",
    ]


def test_waiting_says_for_what_and_gives_its_result(capsys: pytest.CaptureFixture[str]) -> None:
    begun, end = Event(), Event()

    class Seen(Future[int]):
        """Ends once somebody has waited for it in vain."""

        def result(self, timeout: float | None = None) -> int:
            if not begun.is_set():
                begun.set()
                raise TimeoutError
            end.set()
            return super().result(timeout)

    work = Seen()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: end.wait() and work.set_result(7))
        assert wait_for(work, "loading base", seconds=30) == 7
    assert capsys.readouterr().err.splitlines() == ["loading base ...", "loading base: 0 s so far"]


def test_a_failure_that_is_waited_for_is_raised() -> None:
    work: Future[int] = Future()
    work.set_exception(TimeoutError("its own"))
    with pytest.raises(TimeoutError, match="its own"):
        wait_for(work, "loading base")
