"""`manytune keys`: who may ask a server, and what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from manytune.cli.command_line import CommandLine
from manytune.cli.options import AsJson

File = Annotated[Path, typer.Option("--file", help="The file of keys, which manytune serve --keys reads.")]
Name = Annotated[str, typer.Argument(help="The key's name, as in the server's log.", show_default=False)]
DEFAULT_FILE = Path("keys.json")


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    group = CommandLine(help="Make, list and revoke the API keys of a server.")
    group.command("add")(add)
    group.command("list")(list_)
    group.command("revoke")(revoke)
    app.add_typer(group, name="keys")


def add(
    name: Name,
    file: File = DEFAULT_FILE,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="A model that it may use, or a pattern such as 'support-*'; repeatable. All if not given.",
            show_default=False,
        ),
    ] = None,
    tenant: Annotated[
        str,
        typer.Option(
            help="Whose share of the server it counts towards; its own if not given.", show_default=False
        ),
    ] = "",
    per_minute: Annotated[
        int | None, typer.Option(min=1, help="Answers a minute; no limit if not given.", show_default=False)
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option(min=1, help="Answers at once; no limit if not given.", show_default=False)
    ] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="It may also load and unload adapters, and read the metrics.")
    ] = False,
) -> None:
    """Make a key and print it, once: the file keeps its hash only.

    A running server has it from the next look at its file on, two seconds later.
    """
    from manytune.cli.outputs.lines import print_line
    from manytune.server.access.key_file import add_key

    secret = add_key(
        file,
        name,
        models=tuple(models) if models else ("*",),
        tenant=tenant,
        requests_per_minute=per_minute,
        concurrent=concurrent,
        admin=admin,
    )
    typer.echo(secret)
    print_line(f"{file}: added {name}. Only its hash is kept: note the key now.", stderr=True)


def list_(file: File = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """List the keys of a file with their rights."""
    from manytune.cli.outputs.json_output import print_json
    from manytune.cli.outputs.lines import print_line
    from manytune.server.access.key_file import read_key_file

    keys = read_key_file(file)
    if as_json:
        print_json([key.model_dump(mode="json") for key in keys])
        return
    for key in keys:
        rights = ["admin"] if key.admin else []
        rights.append("all models" if "*" in key.models else ", ".join(key.models))
        rights += [f"{key.requests_per_minute} a minute"] if key.requests_per_minute else []
        rights += [f"{key.concurrent} at once"] if key.concurrent else []
        rights += [f"tenant {key.tenant}"] if key.tenant != key.name else []
        print_line(f"{key.name}: {'; '.join(rights)}")


def revoke(name: Name, file: File = DEFAULT_FILE) -> None:
    """Take a key out of a file; a running server refuses it two seconds later."""
    from manytune.cli.outputs.lines import print_line
    from manytune.server.access.key_file import revoke_key

    revoke_key(file, name)
    print_line(f"{file}: revoked {name}.", stderr=True)
