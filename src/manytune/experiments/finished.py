"""What is on disk of an experiment's trials, and what of it answers what is asked now."""

from __future__ import annotations

from pathlib import Path

from manytune.evaluation.records import RunRecord, read_record
from manytune.experiments.trials import Phase, Trial


def record_path(directory: Path, name: str) -> Path:
    """Where a run's record is in an experiment's directory."""
    return directory / "records" / f"{name}.json"


def kept_record(directory: Path, name: str, question: str, *, ranks: bool = False) -> RunRecord | None:
    """A run's record; None if there is none, or if it doesn't answer all that is asked.

    Args:
        directory: The experiment's.
        name: The run.
        question: The hash of what is asked.
        ranks: Whether it has to hold what a rank sweep needs.

    Raises:
        DataError: The file isn't a record.
    """
    path = record_path(directory, name)
    found = read_record(path) if path.is_file() else None
    if found is None or found.question != question or (ranks and not found.validation):
        return None
    return found


def is_done(directory: Path, phase: Phase, trial: Trial, question: str, *, ranks: bool) -> bool:
    """Whether all that a phase does with a trial has been done; the rest as for `kept_record`.

    Raises:
        DataError: The trial's file isn't a record.
    """
    if phase is Phase.SEARCH:
        return trial.trained or trial.divergence is not None
    return kept_record(directory, trial.name, question, ranks=ranks) is not None
