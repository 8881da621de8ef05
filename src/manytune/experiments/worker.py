"""One of several processes that work through the same list of trials.

Processes agree through the disk alone. Each goes through the whole list, takes a trial that nobody holds, and
leaves its record; finished trials are passed over. So it makes no difference how many there are, whether one dies,
or who started them: the records are the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from manytune.errors import ManytuneError, StoreError
from manytune.experiments.recipe import experiment_from
from manytune.experiments.trials import Trial
from manytune.experiments.workspace import Bench, open_bench
from manytune.store.locking import held
from manytune.training.progress import Report
from manytune.training.recipe import recipe_from

Phase = Literal["search", "finish"]


@dataclass(frozen=True)
class Work:
    """What a worker is given, as JSON.

    Attributes:
        content: The experiment's recipe.
        ranks: Whether records keep what a rank sweep needs.
        phase: Whether trials are only trained, or asked too.
        trials: The trials.
    """

    content: dict[str, Any]
    ranks: bool
    phase: Phase
    trials: tuple[Trial, ...]

    def to_json(self) -> str:
        """The JSON form."""
        trials = [
            {
                "name": trial.name,
                "system": trial.system,
                "recipes": [[task, recipe.model_dump(mode="json")] for task, recipe in trial.recipes.items()],
            }
            for trial in self.trials
        ]
        return json.dumps(
            {"content": self.content, "ranks": self.ranks, "phase": self.phase, "trials": trials}
        )

    @classmethod
    def from_json(cls, text: str) -> Work:
        """What `to_json` wrote."""
        found = json.loads(text)
        trials = tuple(
            Trial(
                one["name"],
                one["system"],
                {task: recipe_from(recipe) for task, recipe in one["recipes"]},
            )
            for one in found["trials"]
        )
        return cls(found["content"], found["ranks"], found["phase"], trials)


class _Lines:
    """Shows stages only, on stderr, so that several workers' lines can be told apart."""

    def line(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def training(self, report: Report) -> None:
        pass

    def answering(self, what: str, done: int, total: int) -> None:
        pass


def do(work: Work) -> None:
    """Do what nobody else does of some work.

    Raises:
        ManytuneError: A trial failed.
    """
    bench = open_bench(experiment_from(work.content), _Lines(), ranks=work.ranks)
    do_free(bench, work.phase, work.trials)


def do_free(bench: Bench, phase: Phase, trials: Sequence[Trial]) -> None:
    """Go through the trials, and do those that no other process holds."""
    for trial in trials:
        try:
            with held(bench.experiment.directory / "held" / trial.name):
                if phase == "search":
                    bench.search(trial)
                else:
                    bench.finish(trial)
        except StoreError as error:
            if "another process" not in str(error):
                raise


def main() -> int:
    """Entry point of a worker's process: the work's file is the one argument."""
    try:
        do(Work.from_json(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except ManytuneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
