"""Writes `docs/cli.md` from the command line itself; a test compares the two."""

from pathlib import Path
from typing import Any

import typer.main

from manytune.cli.main import build_app

PAGE = Path(__file__).with_name("cli.md")
INTRODUCTION = """\
# Command line

Exit status: 0 done, 1 failed (the message is on stderr), 2 wrong usage, 130 interrupted. Commands that print
a result take `--json`, and a result is all that stdout gets: progress is on stderr, as a bar on a terminal and a line
every 30 seconds elsewhere. `manytune --version` prints the version.

`manytune --install-completion` lets bash, zsh, fish or PowerShell complete commands, options and the names of the
store's adapters; `--show-completion` prints the lines that it adds to the shell's settings.

An adapter is called by its name in the store, by the first digits of its digest, or by its directory or its run's; a
directory comes first. A recipe's mistakes are reported before a model library is imported.
"""


def render() -> str:
    """The whole page."""
    root = typer.main.get_command(build_app())
    sections = [INTRODUCTION]
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        sections += _sections(f"manytune {name}", command)
    return "\n".join(sections)


def _sections(name: str, command: Any) -> list[str]:
    paragraphs = [" ".join(part.split()) for part in (command.help or "").split("\n\n")]
    text = "\n\n".join([f"## `{name}`", *paragraphs]) + "\n"
    if hasattr(command, "commands"):
        return [
            text,
            *(s for sub, child in command.commands.items() for s in _sections(f"{name} {sub}", child)),
        ]
    rows = [_row(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
    return [text, "\n".join(["| argument or option | meaning |", "|---|---|", *rows]) + "\n"]


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        names = f"`{(parameter.metavar or parameter.name).upper()}`"
    else:
        names = ", ".join(f"`{option}`" for option in [*parameter.opts, *parameter.secondary_opts])
    meaning = " ".join((parameter.help or "").split())
    default = parameter.default
    if not parameter.required and not callable(default) and default not in (None, False, ()):
        meaning += f" Default: `{getattr(default, 'value', default)}`."
    if parameter.required:
        meaning += " Required."
    return f"| {names} | {meaning.strip().replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    PAGE.write_text(render())
