"""How `manytune demo` prints what to try next."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence

import typer
from rich.console import Console

from manytune.demo.story import Finished
from manytune.store.run_directory import RunDirectory
from manytune.training.progress import duration


def print_next(finished: Finished) -> None:
    """Print how long it took, and commands that continue from what is there now."""
    console = Console(highlight=False)
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
        for line in _command_lines([*_program(), *arguments], width=console.width):
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


def _program() -> list[str]:
    """The words that call this program again: its name if a shell finds it, else how it was called."""
    if shutil.which("manytune"):
        return ["manytune"]
    called = sys.argv[0]
    # `python -m manytune` puts the file's path here, which isn't a program.
    return [sys.executable, "-m", "manytune"] if called.endswith("__main__.py") else [called]
