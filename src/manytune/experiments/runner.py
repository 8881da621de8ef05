"""Where trials are run: one after the other over one base, or by several processes that share the list."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from manytune.atomic import atomic_write
from manytune.errors import RunError
from manytune.experiments import finished as kept
from manytune.experiments.failures import Failure
from manytune.experiments.trials import Phase, Trial
from manytune.experiments.worker import Outcome, Work
from manytune.experiments.workspace import Workspace

KEPT = "What is done is kept: the same command continues from there."


class Runner(Protocol):
    """Gets trials done."""

    def run(self, workspace: Workspace, phase: Phase, trials: Sequence[Trial]) -> None:
        """Run all of them; afterwards `workspace.run` of each only reads.

        Raises:
            RunError: A trial failed.
        """


class InTurn:
    """One after the other, in this process and over its one base."""

    def run(self, workspace: Workspace, phase: Phase, trials: Sequence[Trial]) -> None:
        """See `Runner`."""
        what = {Phase.SEARCH: "learning rates", Phase.FINISH: "systems"}[phase]
        for place, trial in enumerate(trials, start=1):
            workspace.reporter.line(f"{what}, {place} of {len(trials)}: {trial.name}")
            workspace.run(trial, phase)


@dataclass(frozen=True)
class InProcesses:
    """Several processes on this machine, each with a base of its own.

    Attributes:
        workers: How many. Each gets its share of the cores, and one of the GPUs in turn.
    """

    workers: int

    def run(self, workspace: Workspace, phase: Phase, trials: Sequence[Trial]) -> None:
        """See `Runner`."""
        if not trials:
            return
        work = write_work(workspace, phase, trials)
        workspace.reporter.line(f"{len(trials)} trainings in {self.workers} processes")
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / f"outcome-{number}.json" for number in range(self.workers)]
            started = [self._start(work, file, number) for number, file in enumerate(files)]
            try:
                statuses = [process.wait() for process in started]
            finally:
                for process in started:
                    process.terminate()
            outcomes = [_outcome(file, status) for file, status in zip(files, statuses, strict=True)]
        check_outcomes(outcomes, "workers")

    def _start(self, work: Path, outcome: Path, number: int) -> subprocess.Popen[bytes]:
        threads = str(max(1, (os.cpu_count() or 1) // self.workers))
        return subprocess.Popen(  # noqa: S603  # this program
            [sys.executable, "-m", "manytune.experiments.worker", str(work), str(outcome)],
            env={**os.environ, "OMP_NUM_THREADS": threads, **_one_gpu(number)},
        )


def _one_gpu(worker: int) -> dict[str, str]:
    """What lets a worker see one of several GPUs; each would train on the first otherwise."""
    count = torch.cuda.device_count()
    if count < 2:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return {"CUDA_VISIBLE_DEVICES": visible.split(",")[worker % count]}


def is_done(workspace: Workspace, phase: Phase, trial: Trial) -> bool:
    """Whether all that a phase does with a trial has been done."""
    directory, question = workspace.experiment.directory, workspace.digest
    return kept.is_done(directory, phase, trial, question, ranks=workspace.ranks)


def work_file(directory: Path, phase: Phase) -> Path:
    """Where the list of a phase's trials is in an experiment's directory."""
    return directory / f"{phase}.work.json"


def write_work(workspace: Workspace, phase: Phase, trials: Sequence[Trial]) -> Path:
    """Write down what workers are to do, and give back the file."""
    path = work_file(workspace.experiment.directory, phase)
    work = Work(workspace.experiment.content, workspace.ranks, phase, tuple(trials), workspace.digest)
    atomic_write(path, work.to_json())
    return path


def failed(failures: Mapping[str, Failure], trials: int) -> RunError:
    """The error that names the trials that failed, and why each did."""
    listed = " ".join(f"{name}: {failure.message}" for name, failure in failures.items())
    return RunError(f"{len(failures)} of {trials} trials failed. {listed} {KEPT}")


def check_outcomes(outcomes: Sequence[Outcome], workers: str) -> None:
    """See that all workers did their work.

    Raises:
        RunError: One didn't; says what each of them reported.
    """
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors:
        reported = " ".join(dict.fromkeys(errors))
        raise RunError(f"{len(errors)} of {len(outcomes)} {workers} failed: {reported} {KEPT}")


def _outcome(file: Path, status: int) -> Outcome:
    """What a process wrote before it ended; one that was killed or has a defect wrote nothing."""
    if file.is_file():
        return Outcome.from_json(file.read_text(encoding="utf-8"))
    return Outcome(f"it ended with exit status {status}; what it printed is above.")
