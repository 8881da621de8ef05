"""Cost and loss curves of a training run, from the files that it left behind."""

from __future__ import annotations

from pathlib import Path

import yaml

from manytune.evaluation.hyperparameters import hyperparameters
from manytune.evaluation.results import Cost, Curves, LossPoint, ScorePoint
from manytune.store.run_directory import RunDirectory
from manytune.store.run_log import StepReport, ValidationReport

_TENSORS = ".safetensors"


def read_cost(run: Path | None, adapter: Path) -> Cost:
    """What a run says that it took, and the size of its adapter; what isn't known is `None`.

    Args:
        run: The run directory; `None` if there is none.
        adapter: The adapter's directory, whose tensor files are counted.

    Raises:
        RunError: The run's scores can't be read.
    """
    adapter_bytes = sum(file.stat().st_size for file in adapter.rglob(f"*{_TENSORS}"))
    if run is None or not RunDirectory(run).finished:
        return Cost(adapter_bytes=adapter_bytes)
    scores = RunDirectory(run).read_scores()
    return Cost(
        trainable_params=scores.trainable_parameters,
        total_params=scores.all_parameters,
        seconds=scores.seconds,
        peak_memory_bytes=scores.peak_memory,
        adapter_bytes=adapter_bytes,
        tokens_per_second=scores.tokens_per_second,
    )


def read_hyperparameters(run: Path) -> dict[str, str]:
    """The hyperparameters of a run's recipe, under a title; nothing without one."""
    file = RunDirectory(run).recipe_file
    recipe = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    return hyperparameters(recipe) if isinstance(recipe, dict) else {}


def read_curves(run: Path) -> Curves:
    """The losses and validation scores in a run's log; empty without one."""
    reports = RunDirectory(run).reports()
    validations = [one for one in reports if isinstance(one, ValidationReport)]
    names = dict.fromkeys(name for one in validations for name in one.scores)
    return Curves(
        tuple(LossPoint(one.step, one.loss) for one in reports if isinstance(one, StepReport)),
        tuple(LossPoint(one.step, one.validation_loss) for one in validations),
        {
            name: tuple(ScorePoint(one.step, one.scores[name]) for one in validations if name in one.scores)
            for name in names
        },
    )
