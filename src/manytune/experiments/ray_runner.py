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

from manytune.errors import ManytuneError, RunError
from manytune.experiments.bench import Bench
from manytune.experiments.runner import write_work
from manytune.experiments.trials import Trial
from manytune.experiments.worker import Phase, Work, do


@dataclass(frozen=True)
class OnRay:
    """Several Ray tasks, each with a base of its own.

    Attributes:
        workers: How many.
        cores: Cores that each gets.
    """

    workers: int
    cores: int = 1

    def run(self, bench: Bench, phase: Phase, trials: Sequence[Trial]) -> None:
        """See `Runner`.

        Raises:
            RunError: Ray isn't installed, or a worker failed.
        """
        if not trials:
            return
        if importlib.util.find_spec("ray") is None:
            raise RunError("--on ray needs the package ray. Run: pip install 'manytune[cluster]'")
        import ray

        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=False)
        path = str(Path(write_work(bench, phase, trials)).resolve())
        bench.show.line(f"{len(trials)} trainings by {self.workers} Ray workers")
        task: Any = ray.remote(num_cpus=self.cores)(_work)
        directory = str(Path.cwd())  # paths in a recipe are relative to it
        messages = ray.get([task.remote(path, directory) for _ in range(self.workers)])
        failed = [message for message in messages if message]
        if failed:
            raise RunError(
                f"{len(failed)} of {self.workers} Ray workers failed: {failed[0]} What is done is kept: the same "
                "command goes on from there."
            )


def _work(path: str, directory: str) -> str | None:
    """What a Ray task does; gives back the message of what failed."""
    os.chdir(directory)
    try:
        do(Work.from_json(Path(path).read_text(encoding="utf-8")))
    except ManytuneError as error:
        return str(error)
    return None
