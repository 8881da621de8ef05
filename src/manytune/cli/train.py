"""`manytune train`: from a recipe to an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from manytune.training.run import TrainedRun


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
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train what RECIPE describes: one directory a run, resumable."""
    import json

    from rich.console import Console

    from manytune.training.progress import ProgressDisplay
    from manytune.training.recipe import load_recipe
    from manytune.training.run import run

    loaded = load_recipe(recipe, overrides or [])
    # Progress goes to stderr, so that stdout holds the result alone.
    console = Console(stderr=True, highlight=False)
    with ProgressDisplay(console) as progress:
        finished = run(
            loaded,
            resume=resume,
            overwrite=overwrite,
            keep_checkpoints=keep_checkpoints,
            report=progress,
            notify=lambda line: console.print(line, markup=False),
        )
    if as_json:
        typer.echo(json.dumps(finished.to_dict(), indent=2, ensure_ascii=False))
    else:
        _print(finished)


def _print(finished: TrainedRun) -> None:
    from rich.console import Console
    from rich.table import Table

    from manytune.training.progress import duration

    training = finished.training
    table = Table.grid(padding=(0, 2))
    first, last = (training.validation_reports or (None,))[0], training.validation_loss
    if last is not None:
        before = (
            f" (before training {first.validation_loss:.3f})" if first is not None and first.step == 0 else ""
        )
        table.add_row("validation loss", f"{last:.3f}{before}")
    share = training.trainable_parameters / training.all_parameters
    table.add_row("trained", f"{training.trainable_parameters:,} parameters ({share:.2%})")
    table.add_row("steps", f"{training.steps:,} in {duration(training.seconds)}")
    table.add_row("throughput", f"{training.tokens_per_second:,.0f} tokens/s")
    table.add_row("peak memory", f"{training.peak_memory / 2**30:.2f} GiB")
    if finished.left_out:
        table.add_row("rows left out", f"{len(finished.left_out):,} (named in scores.json)")
    Console(highlight=False).print(table)
    typer.echo(
        f"adapter: {finished.adapter}"
    )  # outside the table, which would break a path that is to be copied
