"""`manytune demo`: the whole story on the embedded base and data."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
