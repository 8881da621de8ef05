"""typer's command line, with a `--help` that reads well in a terminal of any width.

Plain text flows where boxes in five columns leave ten letters to a line, and shows `[cluster]`, which Rich takes for
markup.
"""

from __future__ import annotations

import re
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

_VALUES = {"str": "TEXT", "path": "PATH", "int": "N", "float": "N"}


class _Command(TyperCommand):
    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        # RECIPE, as everywhere, where newer typers write {RECIPE}
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and the options, an argument without its type, which its description says."""
        rows: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            is_argument = parameter.param_type_name == "argument"
            if record := parameter.get_help_record(ctx):
                name = str(parameter.metavar or parameter.name) if is_argument else record[0]
                rows["Arguments" if is_argument else "Options"].append((name, record[1]))
        for title, entries in rows.items():
            if entries:
                with formatter.section(title):
                    formatter.write_dl(entries)


class CommandGroup(TyperGroup):
    """A group of commands; its help has each command's description in full."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name, or `None`."""
        command = super().get_command(ctx, cmd_name)
        for parameter in command.params if command else ():
            if parameter.metavar is None:
                parameter.metavar = _value_name(parameter, ctx)
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each visible command and the first paragraph of its help, wrapped under itself."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, _summary(command)) for name, command in commands if command and not command.hidden]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


class CommandLine(typer.Typer):
    """What commands are registered with."""

    def __init__(self, *, cls: type[TyperGroup] = CommandGroup, **options: Any) -> None:
        super().__init__(cls=cls, no_args_is_help=True, rich_markup_mode=None, **options)

    def command(self, name: str | None = None, **options: Any) -> Any:
        """Register a function as a command, under its own name if none is given."""
        return super().command(name, **{"cls": _Command, **options})


def _value_name(parameter: Any, ctx: Any) -> str | None:
    """RECIPE for an argument; of an option's value PATH, TEXT or N, where newer typers write <list[Path]>."""
    if parameter.param_type_name == "argument":
        return str(parameter.name).upper()
    if parameter.is_flag or not hasattr(parameter, "display_type"):
        return None
    shown = re.sub(r"list\[(.*)\]", r"\1", parameter.display_type(ctx).strip("<>")).removesuffix(" range")
    return _VALUES.get(shown.lower(), shown)


def _summary(command: Any) -> str:
    paragraph = (command.short_help or command.help or "").strip().split("\n\n")[0]
    return " ".join(paragraph.split())
