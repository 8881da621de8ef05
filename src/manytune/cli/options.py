"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

MovedBase = Annotated[
    str | None,
    typer.Option(
        "--base",
        help="The base, if it isn't where it was: a hub id, a directory, a .gguf file, or embedded.",
        show_default=False,
    ),
]
