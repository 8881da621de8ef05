"""`manytune compare`: the base, full fine-tuning and each method on the same rows with the same budget."""

from __future__ import annotations

import typer

from manytune.cli.experiments import On, Overrides, Place, Recipe, Workers, runner_of
from manytune.cli.options import AsJson


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(compare)


def compare(
    recipe: Recipe,
    overrides: Overrides = None,
    workers: Workers = 1,
    on: On = Place.HERE,
    as_json: AsJson = False,
) -> None:
    """Train every method that RECIPE names, and full fine-tuning, and say which one helped and how sure that is.

    Learning rates are chosen on validation rows, answers are scored on test rows. If rerun, it continues where it
    stopped: finished runs are read, an interrupted one is resumed.
    """
    from manytune.cli.recipes import check_experiment

    check_experiment(recipe, overrides or [])
    from rich.console import Console

    from manytune.cli.outputs.evaluation import print_evaluation, summary
    from manytune.cli.outputs.json_output import print_json
    from manytune.cli.outputs.progress import CommandProgress
    from manytune.experiments.compare import compare as run_comparison
    from manytune.experiments.opening import open_workspace
    from manytune.experiments.outputs import write_outputs
    from manytune.experiments.recipe import load_experiment
    from manytune.store.locking import held

    experiment = load_experiment(recipe, overrides or [])
    # Progress goes to stderr, so that stdout holds the result alone.
    with CommandProgress(Console(stderr=True, highlight=False)) as progress:
        workspace = open_workspace(experiment, progress)
        with held(experiment.directory):
            evaluation = run_comparison(workspace, runner_of(workers, on))
            written = write_outputs(
                evaluation,
                experiment,
                title="Which fine-tune was worth it?",
                command="manytune compare {recipe}",
            )
    if as_json:
        print_json(summary(evaluation, written))
    else:
        print_evaluation(evaluation, written)
