"""What ended a trial without a result, written down next to the records until it has one."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from manytune.atomic import atomic_write
from manytune.errors import RunError


@dataclass(frozen=True)
class Failure:
    """How a trial failed, as JSON.

    Attributes:
        message: What ended it, in words for people.
        lost: How many processes that ran it were lost; 0 if none was, and the training itself failed.
    """

    message: str
    lost: int = 0


def keep_failure(directory: Path, trial: str, failure: Failure) -> None:
    """Write down how a trial of the experiment in this directory failed."""
    path = _path(directory, trial)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(asdict(failure), indent=2) + "\n")


def failure_of(directory: Path, trial: str) -> Failure | None:
    """How a trial failed when it was last tried; None if it didn't.

    Raises:
        RunError: The file isn't what `keep_failure` writes.
    """
    path = _path(directory, trial)
    try:
        return Failure(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path}: how the trial failed can't be read ({error}). Remove the file.") from error


def forget_failure(directory: Path, trial: str) -> None:
    """Remove what was written down; nothing if nothing was."""
    _path(directory, trial).unlink(missing_ok=True)


def _path(directory: Path, trial: str) -> Path:
    return directory / "failed" / f"{trial}.json"
