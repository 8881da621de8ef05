"""What `--help` prints, in terminals of 60 and 80 columns, as it was last looked at.

`python -m tests.cli.test_command_line` writes the pages again after a change; look at what changed in them.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from manytune.cli.main import build_app

PAGES = Path(__file__).with_name("help_pages")
WIDTHS = (60, 80)


def commands(command: Any = None, name: str = "manytune") -> list[str]:
    """Every command, as it is typed."""
    command = command or typer.main.get_command(build_app())
    inner = getattr(command, "commands", {})
    return [name, *(line for sub, child in inner.items() for line in commands(child, f"{name} {sub}"))]


@cache
def help_pages(width: int) -> str:
    """The help of every command."""
    pages = []
    for command in commands():
        arguments = [*command.split()[1:], "--help"]
        found = CliRunner().invoke(
            build_app(), arguments, prog_name="manytune", terminal_width=width, max_content_width=width
        )
        assert found.exit_code == 0, found.output
        pages.append(f"$ {command} --help\n{found.output.rstrip()}\n")
    return "\n".join(pages)


@pytest.mark.parametrize("width", WIDTHS)
def test_each_commands_help_is_as_it_was_looked_at(width):
    assert help_pages(width) == (PAGES / f"{width}.txt").read_text()


@pytest.mark.parametrize("width", WIDTHS)
def test_help_fits_its_width_and_says_each_sentence_in_full(width):
    text = help_pages(width)
    assert max(map(len, text.splitlines())) <= width
    assert re.findall(r"<\w+>|list\[|(?<!\{)\{\w|[a-z]\.\.\.$|…", text, re.MULTILINE) == []
    assert "manytune[cluster]" in "".join(text.split())


if __name__ == "__main__":
    PAGES.mkdir(exist_ok=True)
    for columns in WIDTHS:
        (PAGES / f"{columns}.txt").write_text(help_pages(columns))
