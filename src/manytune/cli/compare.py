"""`manytune compare`: the base, full fine-tuning and each method on the same rows with the same budget."""

from __future__ import annotations

import typer

from manytune.cli.experiments import (
    CpusPerTrial,
    DryRun,
    GpusPerTrial,
    On,
    Overrides,
    Place,
    Placement,
    Recipe,
    SlurmOptions,
    SlurmStage,
    Workers,
    submit,
    until_prepared,
)
from manytune.cli.options import AsJson


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(compare)


def compare(
    recipe: Recipe,
    overrides: Overrides = None,
    workers: Workers = None,
    on: On = Place.HERE,
    gpus_per_trial: GpusPerTrial = None,
    cpus_per_trial: CpusPerTrial = None,
    slurm_options: SlurmOptions = "",
    dry_run: DryRun = False,
    slurm_stage: SlurmStage = None,
    as_json: AsJson = False,
) -> None:
    """Train every method that RECIPE names, and full fine-tuning, and say which one helped and how sure that is.

    Learning rates are chosen on validation rows, answers are scored on test rows. If rerun, it continues where it
    stopped: finished runs are read, an interrupted one is resumed.
    """
    from manytune.cli.recipes import check_experiment

    placement = Placement(on, workers, gpus_per_trial, cpus_per_trial, slurm_options, dry_run, slurm_stage)
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
    command = ["manytune", "compare", "{recipe}"]
    if placement.submits:
        submit(experiment, experiment, command, placement, as_json=as_json)
        return
    # Progress goes to stderr, so that stdout holds the result alone.
    with CommandProgress(Console(stderr=True, highlight=False)) as progress, until_prepared(progress):
        workspace = open_workspace(experiment, progress)
        with held(experiment.directory):
            evaluation = run_comparison(workspace, placement.runner())
            written = write_outputs(
                evaluation,
                experiment,
                title="Which fine-tune was worth it?",
                command=" ".join(command),
            )
    if as_json:
        print_json(summary(evaluation, written))
    else:
        print_evaluation(evaluation, written)
