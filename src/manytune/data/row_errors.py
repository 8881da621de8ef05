"""The error about rows that can't be used: it names the first, counts the others, and says what to do."""

from __future__ import annotations

from manytune.errors import DataError


def row_error(first: DataError, *, failed: int, rows: int) -> DataError:
    """Return the one error for all rows that can't be used.

    A mistake of a template or of a whole file meets every row, and leaving rows out is no way out of it.

    Args:
        first: The first row's error.
        failed: How many rows can't be used.
        rows: How many there are.
    """
    reason = str(first)
    if first.where is not None:
        reason = reason.removeprefix(f"{first.where}: ")
    if failed == rows > 1:
        others_too = f" (none of the {rows:,} rows can be used)"
    else:
        others = failed - 1
        others_too = f" ({others:,} more row{'s' * (others > 1)} can't be used either)" if others else ""
        others_too += ". In a recipe, data.on_error: skip leaves such rows out"
    return type(first)(f"{reason}{others_too}", where=first.where)
