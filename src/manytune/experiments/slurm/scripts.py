"""The scripts that sbatch gets, and the one that hands them to it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from manytune.experiments.slurm.directives import directives, ranges
from manytune.experiments.trials import Phase

REPORT = "report"
"""The stage that writes the report."""
_REQUEUES = 10
"""How often a job that reached its time limit goes back to the queue; without a checkpoint it would for ever."""

_BODY = """\
if [ -n "${{SLURM_CPUS_PER_TASK:-}}" ]; then export OMP_NUM_THREADS="$SLURM_CPUS_PER_TASK"; fi

# Slurm signals shortly before the time limit. A training resumes at its last checkpoint.
back_to_the_queue() {{
  kill -TERM $(jobs -p) 2>/dev/null; wait
  if [ "${{SLURM_RESTART_COUNT:-0}}" -ge {requeues} ]; then
    echo "sent back {requeues} times: give it more time (--time), or a smaller training.checkpoint_every" >&2
    exit 1
  fi
  echo "at its time limit: back to the queue" >&2
  scontrol requeue "{job}"
  exit 0
}}
trap back_to_the_queue USR1

{command} &
wait $!
"""

_SUBMIT = """\
#!/bin/bash
# Submits what is missing of {directory}; manytune writes it again at each start.

cd {folder} || exit 1
: > jobs
submit() {{
  local id
  id=$(sbatch --parsable "$@") || exit 1
  echo "${{id%%;*}}" | tee -a jobs
}}
{jobs}
"""


@dataclass(frozen=True)
class Asked:
    """What the jobs ask of Slurm.

    Attributes:
        options: More options of sbatch, as on its command line.
        at_once: Trials that run at once; None for as many as Slurm starts.
        cpus: Cores of each.
        gpus: GPUs of each.
    """

    options: str = ""
    at_once: int | None = None
    cpus: int | None = None
    gpus: float | None = None


@dataclass(frozen=True)
class Job:
    """A job, or an array of them.

    Attributes:
        name: What people call it.
        stage: What its script is given: the phase that it prepares or runs, or `REPORT`.
        places: The trials of an array, by their places in the list of work; empty for a single job.
    """

    name: str
    stage: Phase | str
    places: tuple[int, ...] = ()


def trials_script(directory: Path, asked: Asked) -> str:
    """The array's script. Its argument is the phase."""
    task = shlex.join([sys.executable, "-m", "manytune.experiments.slurm.task", str(directory)])
    return _script(
        directory,
        asked,
        "One trial a task: the one at its number in the list that the job before has written.",
        command=f'{task} "$1" "$SLURM_ARRAY_TASK_ID"',
        log="trials-%A_%a.log",
        job="${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}",
    )


def stage_script(directory: Path, asked: Asked, command: Sequence[str]) -> str:
    """The script of the jobs before and after arrays. Its argument is the stage."""
    return _script(
        directory,
        asked,
        "Asks the untouched base, and lists the trials to run; or, when these are through, writes the report.",
        command=f'{shlex.join([sys.executable, "-m", *command])} --on slurm --slurm-stage "$1"',
        log="stage-%j.log",
        job="${SLURM_JOB_ID}",
    )


def _script(directory: Path, asked: Asked, what: str, *, command: str, log: str, job: str) -> str:
    logs = str(directory / "slurm" / "logs").replace("%", "%%")
    lines = directives(
        asked.options,
        name=f"manytune-{directory.name}",
        log=f"{logs}/{log}",
        directory=str(Path.cwd()),
        cpus=asked.cpus,
        gpus=asked.gpus,
    )
    body = _BODY.format(command=command, job=job, requeues=_REQUEUES)
    return "\n".join(["#!/bin/bash", *lines, "", f"# {what}", body])


def submit_script(directory: Path, jobs: Sequence[Job], asked: Asked) -> str:
    """What submits the jobs, each after the one before; it leaves their ids in `slurm/jobs`, a line each.

    An array is cancelled if what prepares it fails. What follows an array runs in any case, and says what is missing.
    """
    lines: list[str] = []
    for number, job in enumerate(jobs, start=1):
        words = ["submit"]
        if lines:
            words.append(f"--dependency={'afterok' if job.places else 'afterany'}:$job{number - 1}")
        if job.places:
            throttle = f"%{asked.at_once}" if asked.at_once else ""
            words += ["--kill-on-invalid-dep=yes", f"--array={ranges(job.places)}{throttle}"]
        words += ["trials.sbatch" if job.places else "stage.sbatch", str(job.stage)]
        lines.append(f"job{number}=$({' '.join(words)}) || exit 1  # {job.name}")
    return _SUBMIT.format(
        directory=directory, folder=shlex.quote(str(directory / "slurm")), jobs="\n".join(lines)
    )
