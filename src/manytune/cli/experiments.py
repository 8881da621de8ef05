"""Arguments and options that `manytune compare` and `manytune sweep` have in common, and what they say of trials."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from manytune.experiments.recipe import Experiment
    from manytune.experiments.reporter import Reporter
    from manytune.experiments.runner import Runner
    from manytune.experiments.slurm.submission import Submission


class Place(StrEnum):
    """Where trials are run."""

    HERE = "here"
    RAY = "ray"
    SLURM = "slurm"


Recipe = Annotated[Path, typer.Argument(help="A YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key, as in compare.limit=50; repeatable."),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Trainings at once, each with a base of its own in memory. Without it: one here, and elsewhere as many as "
        "there is room for.",
        show_default=False,
    ),
]
On = Annotated[
    Place,
    typer.Option(
        help="Where trainings run: in processes here, on Ray (the extra manytune[cluster]), or as the tasks of a "
        "Slurm array."
    ),
]
GpusPerTrial = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="The part of a GPU that a training on Ray or Slurm gets, such as 0.5. Without it, on Ray: one, where "
        "there are any; on Slurm: what --slurm-options say.",
        show_default=False,
    ),
]
CpusPerTrial = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Cores that a training on Ray or Slurm gets. Without it, on Ray: its part of the machine's.",
        show_default=False,
    ),
]
SlurmOptions = Annotated[
    str,
    typer.Option(
        help='Options of sbatch for every job, such as "--partition=gpu --gres=gpu:1 --time=4:00:00".',
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Write Slurm's scripts, and submit nothing.")]
SlurmStage = Annotated[str | None, typer.Option(hidden=True)]


@dataclass(frozen=True)
class Placement:
    """Where and how trials are run.

    Attributes:
        on: Where.
        workers: How many at once; None for what suits the place.
        gpus: The part of a GPU that each gets; None for what suits the place.
        cpus: Cores that each gets; None for what suits the place.
        options: sbatch's.
        only_write: Whether Slurm's scripts are only written.
        stage: What a job of Slurm is to do; None if this process isn't one.
    """

    on: Place
    workers: int | None = None
    gpus: float | None = None
    cpus: int | None = None
    options: str = ""
    only_write: bool = False
    stage: str | None = None

    def __post_init__(self) -> None:
        """Refuse options that mean nothing there.

        Raises:
            typer.BadParameter: Names the option.
        """
        nowhere = {"--slurm-options": self.options, "--dry-run": self.only_write}
        if self.on is Place.HERE:
            nowhere |= {"--gpus-per-trial": self.gpus is not None, "--cpus-per-trial": self.cpus is not None}
        found = [option for option, given in nowhere.items() if given]
        if found and self.on is not Place.SLURM:
            places = "--on ray and --on slurm" if found[0].endswith("-trial") else "--on slurm"
            raise typer.BadParameter(f"is for {places}", param_hint=found[0])

    @property
    def submits(self) -> bool:
        """Whether the trials are handed to Slurm, and this process loads nothing."""
        return self.on is Place.SLURM and self.stage is None

    def runner(self) -> Runner:
        """What runs trials there."""
        from manytune.experiments.runner import InProcesses, InTurn

        if self.on is Place.RAY:
            from manytune.experiments.ray_runner import OnRay

            return OnRay(self.workers, self.cpus, self.gpus)
        if self.stage is not None:
            from manytune.experiments.slurm.stages import Stages

            return Stages.named(self.stage)
        return InTurn() if self.workers in (None, 1) else InProcesses(self.workers)


@contextmanager
def until_prepared(progress: Reporter) -> Iterator[None]:
    """End the command where a job of Slurm has listed the trials that the next one runs."""
    from manytune.experiments.slurm.stages import PreparedError

    try:
        yield
    except PreparedError as found:
        progress.line(str(found))
        raise typer.Exit from None


def submit(
    named: Experiment, experiment: Experiment, command: list[str], placement: Placement, *, as_json: bool
) -> None:
    """Hand an experiment's trials to Slurm, and say what was submitted.

    Args:
        named: The experiment of the user's recipe.
        experiment: The one that it becomes, which has the systems.
        command: The command, with `{recipe}` in place of the recipe.
        placement: How trials are run.
        as_json: Whether programs read what is said.
    """
    from manytune.experiments.slurm.scripts import Asked
    from manytune.experiments.slurm.submission import submit as submit_trials

    asked = Asked(placement.options, placement.workers, placement.cpus, placement.gpus)
    found = submit_trials(
        named, experiment, asked, command, ranks=command[1] == "sweep", only_write=placement.only_write
    )
    if as_json:
        from manytune.cli.outputs.json_output import print_json

        jobs = dict(found.jobs)
        trials = {str(phase): count for phase, count in found.trials.items()}
        print_json({"script": str(found.script), "jobs": jobs, "trials": trials, "logs": str(found.logs)})
        return
    _print(found, experiment.directory)


def _print(found: Submission, directory: Path) -> None:
    what = ", ".join(f"{count} for {phase}" for phase, count in found.trials.items()) or "none"
    typer.echo(f"Trials to run: {what}.")
    if not found.asks_for_gpus:
        typer.echo("No GPU is asked for: give --gpus-per-trial 1, or --slurm-options with --gres or --gpus.")
    if not found.jobs:
        typer.echo(f"Nothing is submitted. To submit it: bash {found.script}")
        return
    typer.echo("Submitted: " + ", ".join(f"{name} as {job}" for name, job in found.jobs.items()) + ".")
    typer.echo(f"Their logs will be in {found.logs}, and the report {directory / 'report.html'}.")
    typer.echo("The same command submits what is missing then.")
