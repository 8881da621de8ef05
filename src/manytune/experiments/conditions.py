"""What all runs of an experiment depend on: written down at its start, and checked at every later one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from manytune.atomic import atomic_write, clean_leftovers, is_leftover, make_directory
from manytune.data.dataset import TokenSplits, tokens_digest
from manytune.errors import RunError
from manytune.experiments.recipe import Experiment
from manytune.store.base import Base

_FILE = "experiment.json"
_FORMAT = 1
_SLURM = "slurm"  # scripts that are written before anything is loaded
_AN_HOUR = 3600.0
_NOT_READABLE = "what the experiment began with can't be read"
_RESTORE = "Restore the file, or set output to another directory."
# A trial has its own of the first four; the others change no result.
_NOT_IN_COMMON = {
    "learning_rate",
    "seed",
    "max_steps",
    "epochs",
    "device",
    "tensorboard",
    "report_to",
    "checkpoint_every",
}


def date_of(experiment: Experiment) -> str | None:
    """The date in an experiment's prompts, if it has begun and its chat template writes one."""
    path = experiment.directory / _FILE
    if not path.is_file():
        return None
    date: str | None = _read(path).get("date")
    return date


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: {_NOT_READABLE} ({error}). {_RESTORE}") from error
    if not isinstance(found, dict):
        raise RunError(f"{path}: {_NOT_READABLE}: expected an object. {_RESTORE}")
    return found


def keep_conditions(experiment: Experiment, base: Base, data: TokenSplits) -> None:
    """Write the conditions of a new experiment, or check that they are still those of the one that is there.

    Args:
        experiment: Its directory is created if it isn't there.
        base: The base that it loaded.
        data: The rows that it read.

    Raises:
        RunError: The data, the base or the training's settings changed, or the directory holds something else.
    """
    directory = experiment.directory
    path = directory / _FILE
    training = experiment.recipe.training.model_dump(mode="json")
    conditions = {
        "format": _FORMAT,
        "train": tokens_digest(data.train),
        "validation": tokens_digest(data.validation),
        "base": base.fingerprint.identity,
        "training": {key: value for key, value in training.items() if key not in _NOT_IN_COMMON},
        "date": experiment.recipe.data.date,
    }
    if path.is_file():
        before = _read(path)
        changed = [key for key in conditions if before.get(key) != conditions[key]]
        if changed:
            raise RunError(
                f"{directory}: {' and '.join(changed)} changed since this experiment began, so its finished runs can't "
                "be compared with new ones. Restore what was there, or set output to another directory."
            )
        clean_leftovers(directory, older_than=_AN_HOUR)  # workers may be writing
        return
    if directory.is_dir() and not all(is_leftover(one) or one.name == _SLURM for one in directory.iterdir()):
        raise RunError(
            f"{directory}: the directory isn't empty and holds no experiment. Set output to another one, or empty it."
        )
    make_directory(directory)
    atomic_write(path, json.dumps(conditions, indent=2) + "\n")
