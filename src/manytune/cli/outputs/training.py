"""How `manytune train` prints a finished run, or what a run would take."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Table

from manytune.model.accounting import ExpertCounts
from manytune.store.run_directory import SCORES_NAME
from manytune.training.batches import TokenCounts
from manytune.training.dry_run import Estimate
from manytune.training.progress import duration
from manytune.training.run import TrainedRun


def print_run(finished: TrainedRun) -> None:
    """Print what a training did, and where the adapter is."""
    training = finished.training
    table = Table.grid(padding=(0, 2))
    first, last = (training.validation_reports or (None,))[0], training.validation_loss
    if last is not None:
        before = (
            f" (before training {first.validation_loss:.3f})" if first is not None and first.step == 0 else ""
        )
        table.add_row("validation loss", f"{last:.3f}{before}")
    for name, value in training.kept.scores.items():
        table.add_row(f"validation {name}", f"{value:.3f}")
    if finished.keep == "best" or training.kept.stopped_early:
        table.add_row("kept", f"step {training.kept.step:,}: {training.kept.why}")
    table.add_row("trained", _parameters(training.trainable_parameters, training.all_parameters))
    _add_experts(table, training.experts)
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
        table.add_row("frozen layers", f"{share:.0%} of the computed tokens skipped {layers}")
    table.add_row("throughput", f"{training.tokens_per_second:,.0f} tokens/s")
    if training.mfu is not None and training.matmul_flops_per_second is not None:
        speed = f"{training.matmul_flops_per_second / 1e9:,.0f} GFLOP/s"
        table.add_row("MFU", f"{training.mfu:.0%} of the {speed} that this machine's matrix products reach")
    table.add_row("peak memory", f"{training.peak_memory / 2**30:.2f} GiB")
    if finished.left_out:
        table.add_row("rows left out", f"{len(finished.left_out):,} (named in {SCORES_NAME})")
    Console(highlight=False).print(table)
    # Outside the table, which would break a path that is to be copied.
    typer.echo(f"adapter: {finished.adapter}")


def print_estimate(estimated: Estimate) -> None:
    """Print what a training would take, and what that rests on."""
    table = Table.grid(padding=(0, 2))
    table.add_row("trained", _parameters(estimated.trainable_parameters, estimated.all_parameters))
    _add_experts(table, estimated.experts)
    table.add_row("model", f"{estimated.all_parameters:,} parameters")
    table.add_row("rows", f"{estimated.train_rows:,}, {estimated.rows_per_epoch:,} in an epoch")
    counts = estimated.epoch
    table.add_row("an epoch", f"{counts.tokens_in:,} tokens, {counts.tokens_computed:,} computed")
    table.add_row("dtype", estimated.dtype)
    table.add_row("batches", estimated.layout.note or estimated.layout.used)
    table.add_row("padding", f"{estimated.padding_share:.0%} of the tokens, if batches were padded")
    table.add_row(
        "shared", f"{counts.saved_by_sharing:.0%} of the others, in prefixes that are computed once"
    )
    if estimated.cache is not None:
        table.add_row("frozen layers", estimated.cache.note)
    table.add_row("steps", f"{estimated.steps:,}")
    table.add_row("time", f"about {duration(estimated.seconds)}, plus loading")
    table.add_row("peak memory", f"about {estimated.peak_memory / 2**30:.2f} GiB")
    console = Console(highlight=False)
    console.print(table)
    console.print(f"Based on {estimated.basis}.", markup=False)


def _add_experts(table: Table, experts: ExpertCounts | None) -> None:
    if experts is None:
        return
    frozen = "" if experts.adapted else ", so they stay frozen"
    share = f"{experts.adapted / experts.all:.0%} of {experts.all:,} parameters"
    table.add_row("experts adapted", f"{experts.adapted:,} ({share}){frozen}")


def _parameters(trained: int, all_of_them: int) -> str:
    return f"{trained:,} parameters ({trained / all_of_them:.2%})"


def _saved(counts: TokenCounts) -> str:
    padding, sharing = f"{counts.saved_by_padding:.0%}", f"{counts.saved_by_sharing:.0%}"
    return f"{padding} by leaving out padding, {sharing} of the rest by sharing prefixes"
