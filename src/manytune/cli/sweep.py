"""`manytune sweep`: LoRA at several ranks and with several numbers of rows, and the least that is enough."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from manytune.experiments.recipe import Experiment

_USUAL = "1,2,4,8,16,32,64"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(sweep)


def sweep(
    recipe: Recipe,
    ranks: Annotated[
        str | None,
        typer.Option(
            help=f"Ranks, separated by commas. Without it: {_USUAL}, or with --rows the recipe's own.",
            show_default=False,
        ),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            help="Numbers of training rows, separated by commas: every rank with each. Without it, all rows.",
            show_default=False,
        ),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            help="Module names separated by commas, or all-linear; repeatable, for every rank with each. Without "
            "it, the recipe's.",
        ),
    ] = None,
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
    """Train RECIPE's LoRA at several ranks over one base in memory, and recommend the least that is enough.

    The rule: the fewest rows, and of these the smallest rank, whose validation loss a paired test doesn't find
    significantly worse than the best. With --rows, a power law also says what more rows would bring, where it fits.
    If rerun, it continues where it stopped.
    """
    from manytune.cli.recipes import check_experiment

    limits = [] if rows is None else _numbers(rows, "--rows")
    asked = [] if ranks is None else _numbers(ranks, "--ranks")
    placement = Placement(on, workers, gpus_per_trial, cpus_per_trial, slurm_options, dry_run, slurm_stage)
    check_experiment(recipe, overrides or [])
    from rich.console import Console

    from manytune.cli.outputs.evaluation import print_evaluation, summary
    from manytune.cli.outputs.experiment import print_sweep
    from manytune.cli.outputs.json_output import print_json
    from manytune.cli.outputs.progress import CommandProgress
    from manytune.experiments.opening import open_workspace
    from manytune.experiments.outputs import write_outputs
    from manytune.experiments.recipe import load_experiment
    from manytune.experiments.sweep import sweep as run_sweep
    from manytune.experiments.sweep import sweep_experiment
    from manytune.store.locking import held

    named = load_experiment(recipe, overrides or [])
    tried = asked or ([_own_rank(named)] if limits else _numbers(_USUAL, "--ranks"))
    experiment = sweep_experiment(named, tried, targets or [], limits)
    options = ["--ranks", ",".join(map(str, tried)), *(["--rows", rows] if rows else [])]
    command = ["manytune", "sweep", "{recipe}", *options, *_repeated(targets or [])]
    if placement.submits:
        submit(named, experiment, command, placement, as_json=as_json)
        return
    with CommandProgress(Console(stderr=True, highlight=False)) as progress, until_prepared(progress):
        workspace = open_workspace(experiment, progress, ranks=True)
        with held(experiment.directory):
            evaluation = run_sweep(workspace, placement.runner())
            written = write_outputs(
                evaluation,
                named,
                title="How much data is enough?" if limits else "Which rank is enough?",
                command=shlex.join(command),
            )
    if as_json:
        print_json(summary(evaluation, written))
        return
    print_sweep(evaluation)
    print_evaluation(evaluation, written)


def _repeated(targets: list[str]) -> list[str]:
    return [word for target in targets for word in ("--targets", target)]


def _own_rank(experiment: Experiment) -> int:
    """The rank of the recipe's own method; 1 if it has none, which a sweep then refuses."""
    from manytune.methods.registry import methods

    method = experiment.recipe.method
    config = method.peft_config()
    return int(getattr(config, methods()[method.name].rank or "", 1))


def _numbers(text: str, option: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(
            f"expected whole numbers from 1, separated by commas; found {text!r}", param_hint=option
        )
    return [int(part) for part in parts]
