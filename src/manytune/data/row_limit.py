"""Fewer training rows, such that those of a smaller number are among those of a larger one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from manytune.data.templates import Example
from manytune.errors import DataError


def limited(examples: Sequence[Example], rows: int | None) -> tuple[Example, ...]:
    """Return this many of the rows, in their order; all without a number.

    Which ones is decided by a hash of their places, so it is the same in every run, and whatever comes first in a file
    that is sorted isn't preferred.

    Raises:
        DataError: There are fewer rows.
    """
    if rows is None:
        return tuple(examples)
    if len(examples) < rows:
        raise DataError(
            f"data.limit asks for {rows:,} training rows, and there are {len(examples):,} after validation and test "
            "rows are set aside; give a smaller number",
            where=examples[0].source if examples else None,
        )
    order = sorted(range(len(examples)), key=lambda place: _digest(examples[place]))
    return tuple(examples[place] for place in sorted(order[:rows]))


def _digest(example: Example) -> bytes:
    return hashlib.blake2b(f"{example.source}\n{example.row}".encode(), digest_size=8).digest()
