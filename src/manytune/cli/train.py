"""`manytune train`: from a recipe to an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from manytune.cli.options import AsJson


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(train)


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key, as in training.epochs=1; repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in the output directory.")
    ] = False,
    keep_checkpoints: Annotated[
        bool, typer.Option("--keep-checkpoints", help="Leave the checkpoints in place at the end.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate tokens, time and memory; train nothing.")
    ] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure the machine's FLOP/s for the MFU after a short run too."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train what RECIPE describes: one directory a run, resumable."""
    from rich.console import Console

    from manytune.cli.outputs.json_output import print_json
    from manytune.cli.outputs.training import print_estimate, print_run
    from manytune.experiments.validation_scores import check_scores, validation_scores
    from manytune.training.progress import ProgressDisplay
    from manytune.training.recipe import load_recipe
    from manytune.training.run import run

    if dry_run and (resume or overwrite or keep_checkpoints or measure):
        raise typer.BadParameter(
            "trains nothing, so --resume, --overwrite, --keep-checkpoints and --measure don't go with it",
            param_hint="--dry-run",
        )
    loaded = load_recipe(recipe, overrides or [])
    check_scores(loaded)
    # Progress goes to stderr, so that stdout holds the result alone.
    console = Console(stderr=True, highlight=False)
    if dry_run:
        from manytune.training.dry_run import estimate

        estimated = estimate(loaded, notify=lambda line: console.print(line, markup=False))
        if as_json:
            print_json(estimated.to_dict())
        else:
            print_estimate(estimated)
        return
    with ProgressDisplay(console) as progress:
        finished = run(
            loaded,
            resume=resume,
            overwrite=overwrite,
            keep_checkpoints=keep_checkpoints,
            measure_flops=measure or None,
            report=progress,
            scorer=validation_scores,
            notify=lambda line: console.print(line, markup=False),
        )
    if as_json:
        print_json(finished.scores.to_dict())
    else:
        print_run(finished)
