"""Lines that commands print: wrapped between words on a terminal, without what could move its cursor."""

from __future__ import annotations

import os

from rich.console import Console
from rich.text import Text

from manytune.terminal import visible


def print_error(message: str) -> None:
    """Print an error on stderr; its lines are as wide as the terminal, or as COLUMNS says, and whole in a log file."""
    text = Text.assemble(("error: ", "bold red"), visible(message))
    console = Console(stderr=True)
    whole = not console.is_terminal and "COLUMNS" not in os.environ
    console.print(text, overflow=None if whole else "fold", soft_wrap=whole)


def print_line(text: str, *, stderr: bool = False) -> None:
    """Print one line; on a terminal it is wrapped, and for a program it is left as it is.

    Args:
        text: The line.
        stderr: Print it on stderr, where it isn't the command's result.
    """
    console = Console(highlight=False, markup=False, stderr=stderr)
    console.print(Text(visible(text)), soft_wrap=not console.is_terminal)
