"""`manytune demo`: the whole story on the embedded base and data."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from manytune.demo.story import Finished


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
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fine-tune a real model on real documents and see what it bought.

    Trains LoRA and, for comparison, every weight; asks the untouched base and both about the same unseen
    papers; writes a report.
    """
    import time

    started = time.monotonic()
    from rich.console import Console

    from manytune.cli.outputs.evaluate import print_evaluation, print_json

    # The story goes to stderr, so that stdout holds the result alone.
    console = Console(stderr=True, highlight=False)
    console.print("Loading PyTorch and transformers ...")
    from manytune.demo.story import tell

    finished = tell(output, minutes=None if full else minutes, console=console, started=started)
    written = [finished.report, finished.results, finished.lora.adapter]
    if as_json:
        print_json(finished.evaluation, written)
        return
    console.print()
    print_evaluation(finished.evaluation, written)
    _print_next(finished, Console(highlight=False))


def _print_next(finished: Finished, console: Console) -> None:
    from manytune.store.run_directory import RunDirectory
    from manytune.training.progress import duration

    run = finished.lora.directory
    steps = 3 * finished.lora.training.steps
    console.print()
    console.print(f"That took {duration(finished.seconds)}. Next:")
    for arguments in (
        ["generate", "--adapter", str(run), "--with-base", "--file", str(finished.unseen)],
        [
            "train",
            str(RunDirectory(run).recipe_file),
            "--set",
            f"training.max_steps={steps}",
            "--set",
            f"output={run}-longer",
        ],
        ["adapters", "show", str(finished.lora.adapter)],
    ):
        for line in _command_lines([_program(), *arguments], width=console.width):
            typer.echo(line)


def _command_lines(words: Sequence[str], *, width: int) -> list[str]:
    """A command in indented lines of at most `width` columns where that is possible; a shell takes them as one."""
    lines = [""]
    for word in map(shlex.quote, words):
        line = f"{lines[-1]} {word}" if lines[-1] else f"{'      ' if len(lines) > 1 else '  '}{word}"
        if len(line) + 2 > width and lines[-1]:
            lines[-1] += " \\"
            line = f"      {word}"
            lines.append("")
        lines[-1] = line
    return lines


def _program() -> str:
    """How this program can be called again: by name if that finds it, else by the path it was called by."""
    return "manytune" if shutil.which("manytune") else sys.argv[0]
