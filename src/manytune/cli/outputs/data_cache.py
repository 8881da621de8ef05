"""How `manytune data cache` prints what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from manytune.data.encoding.encoding_cache import CacheEntry


def print_entries(directory: Path, entries: Sequence[CacheEntry], *, removed: bool) -> None:
    """Print each entry's size and last use, and all together."""
    if entries:
        table = Table("entry", "MB", "last used (UTC)", box=None, pad_edge=False)
        for entry in entries:
            table.add_row(entry.path.stem[:12], f"{entry.nbytes / 1e6:,.1f}", _date(entry))
        Console(highlight=False).print(table)
    total = sum(entry.nbytes for entry in entries) / 1e6
    typer.echo(
        f"{'removed ' if removed else ''}{len(entries)} {'entry' if len(entries) == 1 else 'entries'}, {total:,.1f} MB"
    )
    typer.echo(f"directory: {directory}")


def entries_as_json(directory: Path, entries: Sequence[CacheEntry], *, removed: bool) -> dict[str, Any]:
    """The same for programs."""
    return {
        "directory": str(directory),
        "removed": removed,
        "entries": [
            {"name": entry.path.stem, "bytes": entry.nbytes, "used": _date(entry)} for entry in entries
        ],
    }


def _date(entry: CacheEntry) -> str:
    return datetime.fromtimestamp(entry.used, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
