"""`manytune demo`: the whole story on the embedded base and data."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from manytune.cli.options import AsJson


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(demo)


def demo(
    minutes: Annotated[
        float, typer.Option(min=1, help="The time budget; steps and test papers are fitted to it.")
    ] = 8,
    full: Annotated[
        bool, typer.Option("--full", help="The long version: no budget, every test paper.")
    ] = False,
    output: Annotated[
        Path, typer.Option(help="Where everything goes; an earlier demo there is replaced.")
    ] = Path("runs/demo"),
    as_json: AsJson = False,
) -> None:
    """Fine-tune a real model on real documents and see what it improved.

    Trains LoRA and, for comparison, every weight; asks the untouched base and both about the same unseen
    papers; writes a report.
    """
    started = time.monotonic()
    from manytune.demo.packages import require_packages

    require_packages()
    from rich.console import Console

    # The story goes to stderr, so that stdout holds the result alone.
    console = Console(stderr=True, highlight=False)
    console.print("Loading PyTorch and transformers ...")
    from manytune.cli.outputs.demo import print_next
    from manytune.cli.outputs.evaluation import print_evaluation, summary
    from manytune.cli.outputs.json_output import print_json
    from manytune.demo.story import run_demo

    finished = run_demo(output, minutes=None if full else minutes, console=console, started=started)
    written = [finished.report, finished.results, finished.lora.adapter]
    if as_json:
        print_json(summary(finished.evaluation, written))
        return
    console.print()
    print_evaluation(finished.evaluation, written)
    print_next(finished)
