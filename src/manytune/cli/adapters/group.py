"""The commands of `manytune adapters`."""

from __future__ import annotations

import typer

from manytune.cli.adapters import hub, keep, make
from manytune.cli.command_line import CommandLine


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    adapters = CommandLine(help="Keep adapters, look at them, combine them and hand them on.")
    for command in (*keep.COMMANDS, *make.COMMANDS, *hub.COMMANDS):
        adapters.command(name=command.__name__.rstrip("_"))(command)
    app.add_typer(adapters, name="adapters")
