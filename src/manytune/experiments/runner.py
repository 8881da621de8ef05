"""Where trials are run: one after the other over one base, or by several processes that share the list."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from manytune.atomic import atomic_write
from manytune.errors import RunError
from manytune.experiments.trials import Trial
from manytune.experiments.worker import Phase, Work
from manytune.experiments.workspace import Bench


class Runner(Protocol):
    """Gets trials done."""

    def run(self, bench: Bench, phase: Phase, trials: Sequence[Trial]) -> None:
        """Do all of them; afterwards `bench.search` or `bench.finish` of each only reads.

        Raises:
            RunError: A trial failed.
        """


class InTurn:
    """One after the other, in this process and over its one base."""

    def run(self, bench: Bench, phase: Phase, trials: Sequence[Trial]) -> None:
        """See `Runner`."""
        what = {"search": "learning rates", "finish": "systems"}[phase]
        for place, trial in enumerate(trials, start=1):
            bench.show.line(f"{what}, {place} of {len(trials)}: {trial.name}")
            if phase == "search":
                bench.search(trial)
            else:
                bench.finish(trial)


@dataclass(frozen=True)
class InProcesses:
    """Several processes on this machine, each with a base of its own.

    Attributes:
        workers: How many. Each gets its share of the cores.
    """

    workers: int

    def run(self, bench: Bench, phase: Phase, trials: Sequence[Trial]) -> None:
        """See `Runner`."""
        if not trials:
            return
        path = write_work(bench, phase, trials)
        threads = str(max(1, (os.cpu_count() or 1) // self.workers))
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-m", "manytune.experiments.worker", path]
        bench.show.line(f"{len(trials)} trainings in {self.workers} processes")
        started = [subprocess.Popen(command, env=environment) for _ in range(self.workers)]
        try:
            failed = [process.wait() for process in started]
        finally:
            for process in started:
                process.terminate()
        if any(failed):
            raise RunError(
                f"{sum(map(bool, failed))} of {self.workers} workers failed; their messages are above. What is done is "
                "kept: the same command goes on from there."
            )


def write_work(bench: Bench, phase: Phase, trials: Sequence[Trial]) -> str:
    """Write down what workers are to do, and give back the file's path."""
    path = bench.experiment.directory / f"{phase}.work.json"
    atomic_write(path, Work(bench.experiment.content, bench.ranks, phase, tuple(trials)).to_json())
    return str(path)
