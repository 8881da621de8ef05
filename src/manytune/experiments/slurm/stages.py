"""What runs in a job before or after an array: the experiment up to trials that are still to be run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from manytune.errors import RunError
from manytune.experiments.failures import failure_of
from manytune.experiments.runner import is_done, write_work
from manytune.experiments.slurm.scripts import REPORT
from manytune.experiments.trials import Phase, Trial
from manytune.experiments.workspace import Workspace


class PreparedError(Exception):
    """The trials of a phase are listed; the experiment goes on when they have been run."""


@dataclass(frozen=True)
class Stages:
    """Runs no trial.

    Attributes:
        prepares: The phase whose trials it lists; None if all have been run.
    """

    prepares: Phase | None

    @classmethod
    def named(cls, stage: str) -> Stages:
        """Of the stage that a job's script is given."""
        return cls(None if stage == REPORT else Phase(stage))

    def run(self, workspace: Workspace, phase: Phase, trials: Sequence[Trial]) -> None:
        """See `Runner`.

        Raises:
            PreparedError: They are those that it prepares.
            RunError: One of an earlier phase has no result.
        """
        if not trials:
            return
        write_work(workspace, phase, trials)
        missing = [trial for trial in trials if not is_done(workspace, phase, trial)]
        if phase is self.prepares:
            raise PreparedError(f"{len(missing)} of {len(trials)} trials are to be run")
        if missing:
            directory = workspace.experiment.directory
            failures = {trial.name: failure_of(directory, trial.name) for trial in missing}
            listed = "; ".join(
                f"{name} ({'no error is recorded' if failure is None else failure.message.rstrip('.')})"
                for name, failure in failures.items()
            )
            raise RunError(
                f"{len(missing)} of {len(trials)} trials have no result: {listed}. Their logs are in "
                f"{directory / 'slurm' / 'logs'}. The same command submits them again."
            )
