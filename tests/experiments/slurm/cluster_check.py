"""A sweep as jobs of a real Slurm of this machine; `make slurm` runs it.

    python -m tests.experiments.slurm.cluster_check

It needs Slurm's daemons (Debian: slurmctld, slurmd, slurm-client) and takes minutes, so it isn't one of `make test`.
One trial is preempted and another one reaches its time limit, as far as the job can tell: `scontrol requeue` is what
Slurm does with a preempted job, and SIGUSR1 to the script is what it sends before the limit. Both have to go back to
the queue and resume at a checkpoint, and the records have to be those of a sweep in one process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.experiments.ray_head_check import command, records, write_recipe
from tests.experiments.slurm.one_node import one_node

PATIENCE = 900.0  # seconds, on a machine that is busy
OPTIONS = ("--on", "slurm", "--workers", "1", "--slurm-options=--time=2:00:00 --partition=all")


def run(asked: list[str], environment: dict[str, str], status: int = 0) -> str:
    """What a command says, whose exit status is as expected."""
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, (asked, done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


def logs(recipe: Path) -> str:
    folder = recipe.parent / "experiment" / "slurm" / "logs"
    return "\n".join(f"{log.name}\n{log.read_text()}" for log in sorted(folder.glob("*.log")))


def job_ids(recipe: Path) -> list[str]:
    return (recipe.parent / "experiment" / "slurm" / "jobs").read_text().split()


def until(what: str, recipe: Path, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, f"{what}\n{logs(recipe)}"
        time.sleep(0.2)


def queue(environment: dict[str, str]) -> str:
    return run(["squeue", "--noheader", "--format=%i %T %r"], environment)


def at_a_checkpoint(recipe: Path, trial: str) -> bool:
    """Whether a trial that runs has a step to resume at."""
    return any((recipe.parent / "experiment" / "trials").glob(f"{trial}/**/checkpoints/*"))


def state(environment: dict[str, str], job: str) -> str:
    return run(["squeue", "--noheader", "--array", "--format=%T", f"--jobs={job}"], environment).strip()


def main() -> int:
    os.environ |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    with tempfile.TemporaryDirectory(prefix="slurm-") as scratch:
        directory = Path(scratch)
        alone, on_slurm = (write_recipe(directory / name) for name in ("alone", "on-slurm"))
        run(command(alone), dict(os.environ))
        expected = records(alone)
        with one_node(directory / "cluster") as environment:
            print(run(["sbatch", "--version"], environment).strip())
            sweep_with_interruptions(on_slurm, environment)
            found = records(on_slurm)
            assert list(found) == list(expected), (list(found), logs(on_slurm))
            for name, one in expected.items():
                for what in ("answers", "probes", "curves", "validation"):
                    assert getattr(one, what) == getattr(found[name], what), (name, what)
            print(f"all {len(found)} records are those of a sweep in one process")
    return 0


def sweep_with_interruptions(recipe: Path, environment: dict[str, str]) -> None:
    """Submit, interrupt the first two trials at a checkpoint, and wait for the report."""
    print(run(command(recipe, *OPTIONS), environment).strip())
    array = job_ids(recipe)[1]
    said = run(command(recipe, *OPTIONS), environment, status=1)
    assert "still in Slurm's queue" in said, said
    preempted, limited = f"{array}_0", f"{array}_1"
    for task, trial in ((preempted, "r=1"), (limited, "r=2")):
        until(f"{task} at a checkpoint", recipe, lambda trial=trial: at_a_checkpoint(recipe, trial))
        assert state(environment, task) == "RUNNING", (queue(environment), logs(recipe))
        if task == preempted:
            run(["scontrol", "requeue", task], environment)
        else:
            run(["scancel", "--batch", "--signal=USR1", task], environment)
        until(f"{task} in the queue", recipe, lambda task=task: state(environment, task) == "PENDING")
    until("the end of the queue", recipe, lambda: not queue(environment))
    for trial in ("r=1", "r=2"):
        (scores,) = (recipe.parent / "experiment" / "trials" / trial).rglob("scores.json")
        assert json.loads(scores.read_text())["resumed_from"], (trial, logs(recipe))
    assert "at its time limit: back to the queue" in logs(recipe), logs(recipe)
    print(
        "a preempted trial and one at its time limit went back to the queue and resumed at their checkpoints"
    )
    assert (recipe.parent / "experiment" / "report.html").is_file(), logs(recipe)


if __name__ == "__main__":
    sys.exit(main())
