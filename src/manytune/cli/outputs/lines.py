"""Lines that commands print: wrapped between words on a terminal, without what could move its cursor."""

from __future__ import annotations

import os
import re

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from manytune.terminal import visible


def print_error(message: str) -> None:
    """Print an error on stderr; its lines are as wide as the terminal, or as COLUMNS says, and whole in a log file.

    A word that is longer than a line, such as a path, is left whole: it can be copied from a terminal that folds it.
    """
    console = Console(stderr=True)
    text = f"error: {visible(message)}"
    if console.is_terminal or "COLUMNS" in os.environ:
        text = "\n".join(_wrapped(line, console.width) for line in text.split("\n"))
    head, rest = text.split(":", 1)
    console.print(Text.assemble((f"{head}:", "bold red"), rest), soft_wrap=True)


def print_line(text: str, *, stderr: bool = False) -> None:
    """Print one line; on a terminal it is wrapped, and for a program it is left as it is.

    Args:
        text: The line.
        stderr: Print it on stderr, where it isn't the command's result.
    """
    console = Console(highlight=False, markup=False, stderr=stderr)
    text = visible(text)
    if console.is_terminal:
        text = "\n".join(_wrapped(line, console.width) for line in text.split("\n"))
    console.print(Text(text), soft_wrap=True)


def _wrapped(line: str, width: int) -> str:
    """A line, broken between words where more than `width` cells would be written."""
    lines = [""]
    for space, word in re.findall(r"(\s*)(\S+)", line):
        if lines[-1].strip() and cell_len(lines[-1] + space + word) > width:
            lines.append(word)
        else:
            lines[-1] += space + word
    return "\n".join(lines)
