"""`manytune compare`: the base, full fine-tuning and each method on the same rows with the same budget."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from manytune.experiments.runner import Runner


class Place(StrEnum):
    """Where trials are run."""

    HERE = "here"
    RAY = "ray"


Recipe = Annotated[Path, typer.Argument(help="A YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key, as in compare.limit=50; repeatable."),
]
Workers = Annotated[
    int, typer.Option(min=1, help="Processes that train at once; each holds a base of its own in memory.")
]
On = Annotated[
    Place,
    typer.Option(
        help="Where the workers are: processes here, or tasks of Ray (pip install 'manytune[cluster]')."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(compare)


def runner_of(workers: int, place: Place) -> Runner:
    """Where trials are run."""
    from manytune.experiments.runner import InProcesses, InTurn

    if place is Place.RAY:
        from manytune.experiments.ray_runner import OnRay

        return OnRay(workers)
    return InTurn() if workers == 1 else InProcesses(workers)


def compare(
    recipe: Recipe,
    overrides: Overrides = None,
    workers: Workers = 1,
    on: On = Place.HERE,
    as_json: AsJson = False,
) -> None:
    """Train every method that RECIPE names, and full fine-tuning, and say which one helped and how sure that is.

    Learning rates are chosen on validation rows, answers are scored on test rows. Started again, it goes on where it
    was: finished runs are read, an interrupted one is resumed.
    """
    from rich.console import Console

    from manytune.cli.outputs.evaluate import print_evaluation, print_json
    from manytune.cli.outputs.experiment_progress import ExperimentProgress
    from manytune.experiments.compare import compare as run_comparison
    from manytune.experiments.outputs import write_outputs
    from manytune.experiments.recipe import load_experiment
    from manytune.experiments.workspace import open_bench
    from manytune.store.locking import held

    experiment = load_experiment(recipe, overrides or [])
    # Progress goes to stderr, so that stdout holds the result alone.
    with ExperimentProgress(Console(stderr=True, highlight=False)) as show:
        bench = open_bench(experiment, show)
        with held(experiment.directory):
            evaluation = run_comparison(bench, runner_of(workers, on))
            written = write_outputs(
                evaluation,
                experiment,
                title="Which fine-tune was worth it?",
                command="manytune compare {recipe}",
            )
    if as_json:
        print_json(evaluation, written)
    else:
        print_evaluation(evaluation, written)
