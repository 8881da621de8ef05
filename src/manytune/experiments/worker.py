"""One of several processes that work through the same list of trials.

Processes agree through the disk alone. Each goes through the whole list, takes a trial that nobody holds, and
leaves its record; finished trials are passed over. So it makes no difference how many there are, whether one dies,
or who started them: the records are the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from manytune.atomic import atomic_write
from manytune.errors import LockedError, ManytuneError
from manytune.experiments.opening import open_workspace
from manytune.experiments.recipe import experiment_from
from manytune.experiments.reporter import StageLines
from manytune.experiments.trials import Phase, Purpose, Trial
from manytune.experiments.workspace import Workspace
from manytune.store.locking import held
from manytune.terminal import quiet_libraries
from manytune.training.recipe import recipe_from

_DYING = 30.0
"""Seconds in which a process that held a trial and was lost is gone."""


@dataclass(frozen=True)
class Work:
    """What a worker is given, as JSON.

    Attributes:
        content: The experiment's recipe.
        ranks: Whether records keep what a rank sweep needs.
        phase: What is done with the trials.
        trials: The trials.
        question: The hash of what is asked, which a record of a trial has, too.
    """

    content: dict[str, Any]
    ranks: bool
    phase: Phase
    trials: tuple[Trial, ...]
    question: str = ""

    def to_json(self) -> str:
        """The JSON form."""
        trials = [
            {
                "name": trial.name,
                "system": trial.system,
                "purpose": trial.purpose,
                "directory": str(trial.directory),
                "recipes": [[task, recipe.model_dump(mode="json")] for task, recipe in trial.recipes.items()],
            }
            for trial in self.trials
        ]
        return json.dumps(
            {
                "content": self.content,
                "ranks": self.ranks,
                "phase": self.phase,
                "trials": trials,
                "question": self.question,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Work:
        """What `to_json` wrote."""
        found = json.loads(text)
        trials = tuple(
            Trial(
                name=one["name"],
                system=one["system"],
                purpose=Purpose(one["purpose"]),
                directory=Path(one["directory"]),
                recipes={task: recipe_from(recipe) for task, recipe in one["recipes"]},
            )
            for one in found["trials"]
        )
        return cls(found["content"], found["ranks"], Phase(found["phase"]), trials, found["question"])


@dataclass(frozen=True)
class Outcome:
    """How a worker ended, as JSON.

    Attributes:
        error: What failed, in words for people; None if nothing did.
    """

    error: str | None = None

    def to_json(self) -> str:
        """The JSON form."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        """What `to_json` wrote."""
        return cls(**json.loads(text))


def work_through(work: Work) -> Outcome:
    """Do what nobody else does of some work."""
    try:
        run_free(open_for(work), work.phase, work.trials)
    except ManytuneError as error:
        return Outcome(str(error))
    return Outcome()


def open_for(work: Work) -> Workspace:
    """Load what some work needs.

    Raises:
        ManytuneError: As for `open_workspace`.
    """
    return open_workspace(experiment_from(work.content), StageLines(), ranks=work.ranks)


def run_alone(workspace: Workspace, phase: Phase, trial: Trial) -> None:
    """Run a trial, when a process that held it before is gone.

    Raises:
        RunError: It failed.
        LockedError: Another process goes on holding it, or something else its run directory.
    """
    with held(workspace.experiment.directory / "held" / trial.name, patience=_DYING):
        workspace.run(trial, phase)


def run_free(workspace: Workspace, phase: Phase, trials: Sequence[Trial]) -> None:
    """Go through the trials, and run those that no other process holds.

    Raises:
        RunError: A trial failed.
        LockedError: A run directory in it is held by something else, such as `manytune train`.
    """
    for trial in trials:
        with ExitStack() as holding:
            try:
                holding.enter_context(held(workspace.experiment.directory / "held" / trial.name))
            except LockedError:
                continue
            workspace.run(trial, phase)


def main() -> None:
    """Entry point of a worker's process; its arguments are the work's file and where its outcome is written."""
    quiet_libraries()
    work, outcome = map(Path, sys.argv[1:])
    found = work_through(Work.from_json(work.read_text(encoding="utf-8")))
    atomic_write(outcome, found.to_json())


if __name__ == "__main__":
    main()
