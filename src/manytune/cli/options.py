"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from manytune.atomic import require_writable
from manytune.errors import WriteError

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

MovedBase = Annotated[
    str | None,
    typer.Option(
        "--base",
        help="The base, if it isn't where it was: a hub id, a directory, a .gguf file, or embedded.",
        show_default=False,
    ),
]


def check_place(option: str, file: Path) -> None:
    """Refuse a file that an option names and that can't be written, before work begins whose result goes there."""
    try:
        require_writable(file)
    except WriteError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
