"""`log.jsonl`: what was written before an interruption stays, and nothing is there twice."""

from __future__ import annotations

import json
from pathlib import Path

from manytune.store.run_log import Report, RunLog, StepReport, ValidationReport, read_reports


def step(number: int) -> StepReport:
    return StepReport(number, 4, 0.5, 1 / 3, 0.1, 1.5, 10 * number, 0.5 * number, 0.6 * number)


REPORTS: list[Report] = [
    ValidationReport(0, 4, 3.25, 0.1),
    step(1),
    step(2),
    ValidationReport(2, 4, 2.5, 1.3),
]


def write(path: Path, reports: list[Report], *, after: int | None = None) -> None:
    with RunLog(path, after=after) as log:
        for report in reports:
            log.write(report)


def test_reports_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, REPORTS)
    assert list(read_reports(path)) == REPORTS
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[1]["tokens_per_second"] == 20.0  # 10 tokens in half a second
    assert lines[3] == {"step": 2, "total_steps": 4, "validation_loss": 2.5, "seconds": 1.3}


def test_a_resumed_run_keeps_what_came_before_and_half_a_line_goes(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, REPORTS)
    with path.open("a") as file:
        file.write('{"step": 3, "total_st')
    write(path, [step(2)], after=1)
    assert list(read_reports(path)) == [*REPORTS[:2], step(2)]


def test_a_new_run_begins_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, REPORTS)
    write(path, [step(1)])
    assert list(read_reports(path)) == [step(1)]


def test_there_are_no_reports_without_a_file(tmp_path: Path) -> None:
    assert read_reports(tmp_path / "log.jsonl") == ()


def test_lines_of_broken_bytes_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, REPORTS)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b'{"step": 1, "total\xff\x00_st\n', *lines[2:]]))
    assert list(read_reports(path)) == [REPORTS[0], *REPORTS[2:]]


def test_a_validation_that_is_measured_again_after_an_interruption_is_there_once(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, REPORTS)
    write(path, [ValidationReport(2, 4, 2.5, 1.9), step(3)], after=2)
    assert list(read_reports(path)) == [*REPORTS, step(3)]
