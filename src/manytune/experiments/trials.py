"""One training of one system: its recipes, and what is on disk of it.

A trial is named after what decides it, such as `lora/lr-0.001-seed-0`. Its directory holds one run
(`training/run.py`), or one a task for a system with an adapter for each. Of a training that broke off since its loss
wasn't finite, it also holds how (`diverged.json`).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from manytune.atomic import atomic_write
from manytune.errors import DivergedError, RunError
from manytune.evaluation.results import Cost, Curves
from manytune.evaluation.run_files import read_cost, read_curves
from manytune.experiments.validation_scores import validation_scores
from manytune.store.base import Base
from manytune.store.run_directory import RunDirectory, RunScores
from manytune.store.run_log import Report
from manytune.training.identity import begun_with
from manytune.training.recipe import Recipe
from manytune.training.run import run

Number = TypeVar("Number", int, float)

_DIVERGENCE = "diverged.json"
_CLEAR_PEAK = Path("/proc/self/clear_refs")


class Phase(StrEnum):
    """What is done with a trial.

    Attributes:
        SEARCH: It is trained, for its validation loss.
        FINISH: It is trained and asked everything, and its record is kept.
    """

    SEARCH = "search"
    FINISH = "finish"


class Purpose(StrEnum):
    """What a trial is trained for.

    Attributes:
        RESULT: To be a result of the experiment.
        SEARCH: To choose a learning rate alone, with fewer steps than a result's.
        TIMING: To see how long a step takes.
    """

    RESULT = "result"
    SEARCH = "search"
    TIMING = "timing"


@dataclass(frozen=True)
class Divergence:
    """How a training broke off, as JSON.

    Attributes:
        message: The training's error, which names the step and its rows.
    """

    message: str


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of one system.

    Attributes:
        name: Its name within the experiment.
        system: The system.
        purpose: What it is trained for.
        directory: Where its runs are.
        recipes: The recipe of each of its runs, by task; a single run's is under None.
    """

    name: str
    system: str
    purpose: Purpose
    directory: Path
    recipes: Mapping[str | None, Recipe]

    @property
    def any_recipe(self) -> Recipe:
        """One of the recipes; they have method, learning rate and seed in common."""
        return next(iter(self.recipes.values()))

    @property
    def runs(self) -> list[RunDirectory]:
        """The directory of each of its runs."""
        return [RunDirectory(Path(recipe.output)) for recipe in self.recipes.values()]

    @property
    def adapters(self) -> dict[str | None, Path]:
        """Where its adapters are, by task."""
        return {task: run.adapter for task, run in zip(self.recipes, self.runs, strict=True)}

    @property
    def trained(self) -> bool:
        """Whether all of its runs have ended well."""
        return all(run.finished for run in self.runs)

    @property
    def dropped(self) -> bool:
        """Whether an adapter of a finished run isn't there any more."""
        return self.trained and not all(adapter.is_dir() for adapter in self.adapters.values())

    @property
    def divergence(self) -> Divergence | None:
        """How an earlier training of it broke off; None if none did."""
        path = self.directory / _DIVERGENCE
        if not path.is_file():
            return None
        try:
            return Divergence(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise RunError(
                f"{path}: how the training diverged can't be read ({error}). Remove the file to try it again."
            ) from error

    def keep_divergence(self, error: DivergedError) -> None:
        """Write down how its training broke off, so that it isn't tried again."""
        found = Divergence(str(error))
        self.directory.mkdir(parents=True, exist_ok=True)
        atomic_write(self.directory / _DIVERGENCE, json.dumps(asdict(found), indent=2) + "\n")

    def scores(self) -> list[RunScores]:
        """What each run says of itself."""
        return [run.read_scores() for run in self.runs]

    @property
    def validation_loss(self) -> float:
        """The validation loss of the step that is kept; of several runs, the mean."""
        losses = [scores.validation_loss for scores in self.scores() if scores.validation_loss is not None]
        return sum(losses) / len(losses)

    @property
    def steps(self) -> int:
        """Optimizer steps of all runs."""
        return sum(scores.steps for scores in self.scores())

    @property
    def step_seconds(self) -> float:
        """Seconds of one optimizer step, validation not counted."""
        seconds = [scores.tokens / scores.tokens_per_second for scores in self.scores()]
        return sum(seconds) / self.steps

    def cost(self) -> Cost:
        """What all runs took together; memory is the most of any."""
        costs = [read_cost(run.path, run.adapter) for run in self.runs]
        if len(costs) == 1:
            return costs[0]
        seconds = _total([cost.seconds for cost in costs])
        tokens = sum(scores.tokens for scores in self.scores())
        return Cost(
            trainable_params=_total([cost.trainable_params for cost in costs]),
            total_params=costs[0].total_params,
            seconds=seconds,
            peak_memory_bytes=max((cost.peak_memory_bytes or 0 for cost in costs), default=None),
            adapter_bytes=_total([cost.adapter_bytes for cost in costs]),
            tokens_per_second=tokens / (self.step_seconds * self.steps),
        )

    def curves(self) -> Curves:
        """The losses of its run; empty for several, whose steps aren't the same."""
        return read_curves(self.runs[0].path) if len(self.runs) == 1 else Curves()


def trial_name(system: str, *details: str) -> str:
    """A directory's name for a trial: the system's name without what file systems dislike, and the details."""
    return f"{slug(system)}/{'-'.join(details)}"


def slug(text: str) -> str:
    """A text as part of a path."""
    return re.sub(r"[^\w.+=,-]+", "-", text).strip("-.") or "system"


def train(
    trial: Trial,
    base: Base,
    *,
    adapters: bool,
    report: Callable[[Report], None] | None = None,
) -> None:
    """Do what is still missing of a trial: finished runs stay, an interrupted one is resumed.

    Args:
        trial: The trial.
        base: The base, with nothing attached; it is given back as it was.
        adapters: Whether its adapters are wanted, too; a run whose adapter was dropped is then made again.
        report: Called after every step and every validation.

    Raises:
        DivergedError: The loss or the gradient isn't finite.
        RunError: What is on disk was made with another recipe, or the training failed.
    """
    for recipe, directory in zip(trial.recipes.values(), trial.runs, strict=True):
        begun, finished = directory.begun, directory.finished
        if begun:
            _check_same(directory, recipe)
        dropped = finished and not directory.adapter.is_dir()
        if not finished or (dropped and adapters):
            forget_peak_memory()
            resume = begun and not finished
            run(
                recipe,
                resume=resume,
                overwrite=finished,
                base=base,
                report=report,
                scorer=validation_scores,
            )


def drop_adapters(trial: Trial) -> None:
    """Remove a trial's adapters; what is known about it stays."""
    for adapter in trial.adapters.values():
        shutil.rmtree(adapter, ignore_errors=True)


def _check_same(directory: RunDirectory, recipe: Recipe) -> None:
    before = begun_with(directory.recipe_file).model_dump(mode="json")
    now = recipe.model_dump(mode="json")
    changed = [key for key in now if before.get(key) != now[key]]
    if changed:
        raise RunError(
            f"{directory.path}: this trial was made with another recipe ({', '.join(changed)} differ). Restore it, set "
            "output to another directory, or remove this one to train again."
        )


def forget_peak_memory() -> None:
    """Let the kernel count the most memory in use from now on, so that a trial's peak is its own."""
    if _CLEAR_PEAK.exists():
        _CLEAR_PEAK.write_text("5")


def _total(values: Sequence[Number | None]) -> Number | None:
    known = [value for value in values if value is not None]
    return sum(known[1:], known[0]) if known and len(known) == len(values) else None
