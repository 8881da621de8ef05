"""Trials on Ray: the same workers, placed by Ray on this machine or on a cluster that it is connected to.

Workers agree through the disk, so on a cluster the experiment's directory, its rows and its base must be on a
file system that all machines see under the same path, and that has locks.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manytune.errors import RunError
from manytune.experiments.runner import KEPT, check_outcomes, write_work
from manytune.experiments.trials import Phase, Trial
from manytune.experiments.worker import Outcome, Work, work_through
from manytune.experiments.workspace import Workspace
from manytune.extras import install_command


@dataclass(frozen=True)
class OnRay:
    """Several Ray tasks, each with a base of its own.

    Attributes:
        workers: How many.
        cores: Cores that each gets.
    """

    workers: int
    cores: int = 1

    def run(self, workspace: Workspace, phase: Phase, trials: Sequence[Trial]) -> None:
        """See `Runner`.

        Raises:
            RunError: Ray isn't installed or can't be started, or a worker failed.
        """
        if not trials:
            return
        if importlib.util.find_spec("ray") is None:
            raise RunError(f"--on ray needs the package ray. Run: {install_command('cluster')}")
        work = write_work(workspace, phase, trials).resolve()
        workspace.reporter.line(f"{len(trials)} trainings by {self.workers} Ray workers")
        check_outcomes(self._outcomes(str(work)), "Ray workers")

    def _outcomes(self, path: str) -> list[Outcome]:
        """How each worker ended. A Ray that isn't running yet is stopped again."""
        import ray

        started_here = not ray.is_initialized()
        if started_here:
            start_ray()
        try:
            task: Any = ray.remote(num_cpus=self.cores)(_work)
            directory = str(Path.cwd())  # paths in a recipe are relative to it
            outcomes: list[Outcome] = ray.get([task.remote(path, directory) for _ in range(self.workers)])
        except ray.exceptions.RayError as error:  # such as a worker that was killed for its memory
            raise RunError(f"A Ray worker ended before its work: {error} {KEPT}") from error
        finally:
            if started_here:
                ray.shutdown()
        return outcomes


def start_ray() -> None:
    """Start Ray here, or connect to the cluster that `RAY_ADDRESS` names.

    Its own processes must come up within seconds, which a machine that is busy with trainings may not manage, so a
    start that fails is tried once more.

    Raises:
        RunError: It failed twice.
    """
    import ray

    for last in (False, True):
        try:
            ray.init(log_to_driver=False, include_dashboard=False)
            return
        except (RuntimeError, OSError, TimeoutError, ValueError) as error:
            ray.shutdown()
            if last:
                raise RunError(f"Ray could not be started, or not be reached: {error} {KEPT}") from error


def _work(path: str, directory: str) -> Outcome:
    """What a Ray task does."""
    os.chdir(directory)
    return work_through(Work.from_json(Path(path).read_text(encoding="utf-8")))
