"""`manytune train`: from a recipe to an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from manytune.training.batches import TokenCounts
    from manytune.training.dry_run import Estimate
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate tokens, time and memory; train nothing.")
    ] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure the machine's FLOP/s for the MFU after a short run too."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train what RECIPE describes: one directory a run, resumable."""
    import json

    from rich.console import Console

    from manytune.training.progress import ProgressDisplay
    from manytune.training.recipe import load_recipe
    from manytune.training.run import run

    if dry_run and (resume or overwrite or keep_checkpoints or measure):
        raise typer.BadParameter(
            "trains nothing, so --resume, --overwrite, --keep-checkpoints and --measure don't go with it",
            param_hint="--dry-run",
        )
    loaded = load_recipe(recipe, overrides or [])
    # Progress goes to stderr, so that stdout holds the result alone.
    console = Console(stderr=True, highlight=False)
    if dry_run:
        from manytune.training.dry_run import estimate

        estimated = estimate(loaded, notify=lambda line: console.print(line, markup=False))
        if as_json:
            typer.echo(json.dumps(estimated.to_dict(), indent=2, ensure_ascii=False))
        else:
            _print_estimate(estimated)
        return
    with ProgressDisplay(console) as progress:
        finished = run(
            loaded,
            resume=resume,
            overwrite=overwrite,
            keep_checkpoints=keep_checkpoints,
            measure_flops=measure or None,
            report=progress,
            notify=lambda line: console.print(line, markup=False),
        )
    if as_json:
        typer.echo(json.dumps(finished.scores.to_dict(), indent=2, ensure_ascii=False))
    else:
        _print(finished)


def _print(finished: TrainedRun) -> None:
    from rich.console import Console
    from rich.table import Table

    from manytune.store.run_directory import RunDirectory
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
    if training.compile_seconds is not None:
        table.add_row("compiled in", duration(training.compile_seconds))
    if training.kernels is not None:
        table.add_row("kernels", training.kernels)
    counts = training.counters.tokens
    table.add_row("tokens", f"{counts.tokens_in:,} in, {counts.tokens_computed:,} computed")
    table.add_row("saved", _saved(counts))
    if training.cache is not None:
        share = training.counters.skipped_tokens / max(1, counts.tokens_computed - counts.pad_tokens)
        layers = f"{training.cache.layers} of {training.cache.all_layers} layers"
        table.add_row("kept", f"{share:.0%} of the computed tokens skipped {layers}")
    table.add_row("throughput", f"{training.tokens_per_second:,.0f} tokens/s")
    if training.mfu is not None and training.matmul_flops_per_second is not None:
        speed = f"{training.matmul_flops_per_second / 1e9:,.0f} GFLOP/s"
        table.add_row("MFU", f"{training.mfu:.0%} of the {speed} that this machine's matrix products reach")
    table.add_row("peak memory", f"{training.peak_memory / 2**30:.2f} GiB")
    if finished.left_out:
        named = RunDirectory(finished.directory).scores_file.name
        table.add_row("rows left out", f"{len(finished.left_out):,} (named in {named})")
    Console(highlight=False).print(table)
    typer.echo(
        f"adapter: {finished.adapter}"
    )  # outside the table, which would break a path that is to be copied


def _print_estimate(estimated: Estimate) -> None:
    from rich.console import Console
    from rich.table import Table

    from manytune.training.progress import duration

    table = Table.grid(padding=(0, 2))
    share = estimated.trainable_parameters / estimated.all_parameters
    table.add_row("trained", f"{estimated.trainable_parameters:,} parameters ({share:.2%})")
    table.add_row("in all", f"{estimated.all_parameters:,} parameters")
    table.add_row("rows", f"{estimated.train_rows:,}, {estimated.rows_per_epoch:,} in an epoch")
    counts = estimated.epoch
    table.add_row("an epoch", f"{counts.tokens_in:,} tokens, {counts.tokens_computed:,} computed")
    table.add_row("batches", estimated.layout.note or estimated.layout.used)
    table.add_row("padding", f"{estimated.padding_share:.0%} of a padded epoch")
    table.add_row("shared", f"{counts.saved_by_sharing:.0%} of the tokens left")
    if estimated.cache is not None:
        table.add_row("kept", estimated.cache.note)
    table.add_row("steps", f"{estimated.steps:,}")
    table.add_row("time", f"about {duration(estimated.seconds)}, and loading")
    table.add_row("peak memory", f"about {estimated.peak_memory / 2**30:.2f} GiB")
    console = Console(highlight=False)
    console.print(table)
    console.print(f"Based on {estimated.basis}.", markup=False)


def _saved(counts: TokenCounts) -> str:
    return f"{counts.saved_by_padding:.0%} by padding, {counts.saved_by_sharing:.0%} of the rest by sharing"
