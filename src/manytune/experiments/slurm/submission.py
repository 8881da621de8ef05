"""`--on slurm`: which jobs are needed, their scripts, and handing them to sbatch.

A comparison is five jobs: one that lists the trainings that choose learning rates, their array, one that chooses and
lists the trainings of the results, their array, and one that writes the report. A sweep has the last three. Nothing is
loaded where they are submitted: the base, the rows and every mistake in them are the first job's.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from manytune.atomic import atomic_write
from manytune.errors import RunError
from manytune.experiments.finished import is_done
from manytune.experiments.recipe import Experiment
from manytune.experiments.runner import work_file
from manytune.experiments.slurm.directives import asks_for_gpus
from manytune.experiments.slurm.scripts import REPORT, Asked, Job, stage_script, submit_script, trials_script
from manytune.experiments.trials import Phase
from manytune.experiments.worker import Work
from manytune.store.locking import held


@dataclass(frozen=True)
class Submission:
    """What was handed to Slurm.

    Attributes:
        script: What submits it; kept in any case.
        jobs: The jobs' ids by their names; empty if they weren't submitted.
        trials: Trials that they run, by phase.
        logs: Where the jobs write what they print.
        asks_for_gpus: Whether they get GPUs.
    """

    script: Path
    jobs: Mapping[str, str]
    trials: Mapping[Phase, int]
    logs: Path
    asks_for_gpus: bool


def submit(
    named: Experiment,
    experiment: Experiment,
    asked: Asked,
    command: Sequence[str],
    *,
    ranks: bool,
    only_write: bool,
) -> Submission:
    """Write the scripts of what is missing of an experiment, and submit them.

    Args:
        named: The experiment of the user's recipe.
        experiment: The one that it becomes, which has the systems.
        asked: What the jobs ask of Slurm.
        command: What they run but for `python -m`, with `{recipe}` in place of the recipe.
        ranks: Whether records keep what a rank sweep needs.
        only_write: Leave them written, and submit nothing.

    Raises:
        RunError: There is no Slurm here, it refuses the jobs, or those of an earlier start are still in its queue.
    """
    directory = experiment.directory.resolve()
    folder = directory / "slurm"
    _check_queue(folder)
    jobs = jobs_for(experiment, ranks=ranks)
    recipe = folder / "recipe.yaml"
    scripts = {
        recipe: yaml.safe_dump(named.content, sort_keys=False, allow_unicode=True),
        folder / "trials.sbatch": trials_script(directory, asked),
        folder / "stage.sbatch": stage_script(
            directory, asked, [str(recipe) if word == "{recipe}" else word for word in command]
        ),
        folder / "submit.sh": submit_script(directory, jobs, asked),
    }
    with held(directory):  # and no longer: the first job may start before the last one is submitted
        (folder / "logs").mkdir(parents=True, exist_ok=True)  # sbatch makes no directories
        for path, content in scripts.items():
            atomic_write(path, content)
    submitted = {} if only_write else _run(folder, jobs)
    trials = {Phase(job.stage): len(job.places) for job in jobs if job.places}
    gpus = bool(asked.gpus) or asks_for_gpus(asked.options)
    return Submission(folder / "submit.sh", submitted, trials, folder / "logs", gpus)


def jobs_for(experiment: Experiment, *, ranks: bool) -> list[Job]:
    """The jobs that an experiment still needs; at least the one that writes the report."""
    jobs: list[Job] = []
    for phase, count in _trials(experiment).items():
        if not count:
            continue
        # What comes after a search depends on its result.
        listed = None if jobs else _listed(experiment, phase, ranks=ranks)
        if listed is None:
            jobs.append(Job(f"prepare {phase}", phase))
            places = tuple(range(count))
        else:
            places = _missing(experiment, listed)
        if places:
            jobs.append(Job(str(phase), phase, places))
    return [*jobs, Job(REPORT, REPORT)]


def _trials(experiment: Experiment) -> dict[Phase, int]:
    """How many trials each phase will have; the recipe says that alone."""
    systems = experiment.systems().values()
    tried = [len(experiment.rates_of(system)) for system in systems]
    return {
        Phase.SEARCH: sum(rates for rates in tried if rates > 1),
        Phase.FINISH: len(tried) * len(experiment.compare.seeds),
    }


def _listed(experiment: Experiment, phase: Phase, *, ranks: bool) -> Work | None:
    """The list of a phase's trials that an earlier start left; None if there is none for this recipe."""
    path = work_file(experiment.directory, phase)
    if not path.is_file():
        return None
    work = Work.from_json(path.read_text(encoding="utf-8"))
    same = (work.content, work.ranks) == (json.loads(json.dumps(experiment.content)), ranks)
    return work if same else None


def _missing(experiment: Experiment, work: Work) -> tuple[int, ...]:
    return tuple(
        place
        for place, trial in enumerate(work.trials)
        if not is_done(experiment.directory, work.phase, trial, work.question, ranks=work.ranks)
    )


def _check_queue(folder: Path) -> None:
    """Refuse to submit what is still in the queue."""
    ids = _ids(folder)
    if not ids or shutil.which("squeue") is None:
        return
    asked = ["squeue", "--noheader", "--format=%i", f"--jobs={','.join(ids)}"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603  # the user's Slurm
    if found.returncode == 0 and found.stdout.strip():  # it also fails if it has forgotten all of them
        raise RunError(
            f"jobs of an earlier start are still in Slurm's queue: {', '.join(found.stdout.split())}. Wait for them, "
            f"or run: scancel {' '.join(ids)}"
        )


def _ids(folder: Path) -> list[str]:
    """The ids of the jobs that were submitted last."""
    path = folder / "jobs"
    return path.read_text(encoding="utf-8").split() if path.is_file() else []


def _run(folder: Path, jobs: Sequence[Job]) -> dict[str, str]:
    script = folder / "submit.sh"
    if shutil.which("sbatch") is None:
        raise RunError(
            "--on slurm needs Slurm's sbatch, and this machine has none. The scripts are kept; where Slurm is, run: "
            f"bash {script}"
        )
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)  # noqa: S603, S607  # written above
    ids = _ids(folder)
    if done.returncode:
        before = (
            f" Submitted before that: {', '.join(ids)}; cancel with: scancel {' '.join(ids)}" if ids else ""
        )
        raise RunError(
            f"sbatch refused a job: {' '.join(done.stderr.split())}. Its scripts are in {folder}.{before}"
        )
    return {job.name: found for job, found in zip(jobs, ids, strict=True)}
