"""How `manytune adapters list` prints adapters: a line each, which fits the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from manytune.cli.outputs.adapters import DIGITS, megabytes
from manytune.cli.outputs.lines import print_line
from manytune.terminal import visible

if TYPE_CHECKING:
    from manytune.store.entry import StoreEntry
    from manytune.store.manifest import Manifest

_LOSS = "validation_loss"
_HEADINGS = ("name", "method", "size", "score", "age")
_WIDE_HEADINGS = ("name", "method", "size", "digest", "scores", "tags", "base", "trained (UTC)")
_SIZE = 2  # the column whose numbers end at the same place
_SHORTENED = (0, 3, 1)  # what gives way on a narrow terminal: names, then scores, then methods
_LEAST = 12  # letters that a shortened column keeps
_AGES = ((86400, "d"), (3600, "h"), (60, "min"))


def print_list(entries: Sequence[StoreEntry], *, wide: bool = False) -> None:
    """Print adapters, and which of them can't be served.

    Args:
        entries: The adapters.
        wide: Print everything about each, however long the lines.
    """
    console = Console(highlight=False, markup=False)
    width = console.width if console.is_terminal else None  # what a program reads is whole
    if wide:
        heading, *lines = _lines(_WIDE_HEADINGS, map(_wide_row, entries))
    else:
        heading, *lines = list_lines(entries, width=width, now=datetime.now(UTC))
    console.print(Text(heading, "bold"), soft_wrap=True)
    for line in lines:
        console.print(Text(line), soft_wrap=True)
    for entry in entries:
        if entry.manifest.unservable is not None:
            print_line(f"{entry} can't be served: {entry.manifest.unservable}")


def list_lines(entries: Iterable[StoreEntry], *, width: int | None, now: datetime) -> list[str]:
    """The headings and a line for each adapter.

    Args:
        entries: The adapters.
        width: Columns that a line may take; names and scores are shortened to it, which ends in an ellipsis. None
            shortens nothing.
        now: The time, for ages.
    """
    return _lines(_HEADINGS, (_row(entry, now) for entry in entries), width)


def main_score(manifest: Manifest) -> str:
    """The first score that was measured on answers, or else the validation loss, with its name; empty for none."""
    found = next((name for name in manifest.scores if name != _LOSS), None)
    name = found or (_LOSS if _LOSS in manifest.scores else None)
    return "" if name is None else f"{name} {manifest.scores[name]:.4g}"


def age(created: str, now: datetime) -> str:
    """How long ago something was, in its largest unit: `3 d`; a question mark for what is no time.

    Args:
        created: A time as manifests have it, such as `2026-11-30T08:00:00Z`.
        now: The present time.
    """
    try:
        then = datetime.fromisoformat(created)
    except ValueError:
        return "?"
    seconds = (now - (then if then.tzinfo else then.replace(tzinfo=UTC))).total_seconds()
    for size, unit in _AGES:
        if seconds >= size:
            return f"{seconds // size:,.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _row(entry: StoreEntry, now: datetime) -> tuple[str, ...]:
    manifest = entry.manifest
    name = ", ".join(entry.names) or entry.digest[:DIGITS]
    return name, manifest.method, megabytes(entry.nbytes), main_score(manifest), age(manifest.created, now)


def _wide_row(entry: StoreEntry) -> tuple[str, ...]:
    manifest = entry.manifest
    return (
        ", ".join(entry.names),
        manifest.method,
        megabytes(entry.nbytes),
        entry.digest[:DIGITS],
        ", ".join(f"{name} {score:.4g}" for name, score in manifest.scores.items()),
        ", ".join(entry.tags),
        manifest.base,
        manifest.created.removesuffix("Z").replace("T", " "),
    )


def _lines(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]], width: int | None = None) -> list[str]:
    """The rows under their headings, in columns."""
    table = [headings, *(tuple(map(visible, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for column in _SHORTENED if width is not None else ():
        over = sum(widths) + 2 * (len(widths) - 1) - (width or 0)
        if over > 0:
            widths[column] = max(min(_LEAST, widths[column]), widths[column] - over)
    return [_line(row, widths) for row in table]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = []
    for column, (text, width) in enumerate(zip(row, widths, strict=True)):
        cell = text if len(text) <= width else f"{text[: width - 1]}…"
        cells.append(cell.rjust(width) if column == _SIZE else cell.ljust(width))
    return "  ".join(cells).rstrip()
