"""Documents as token sequences, and which of them make up a row of a batch together.

Every token of a document is learned exactly once. Of a document that is longer than a row may be, each part after the
first is given the last token of the part before it. Sequences of a row don't see each other: a batch's layout keeps
them apart, and each counts its positions from 0.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from manytune.data.conversation.turns import Turn


def parts(ids: Sequence[int], begin: tuple[int, ...], longest: int | None) -> tuple[Turn, ...]:
    """Return a document's tokens as sequences of at most `longest` tokens.

    Args:
        ids: The document's, its end token included.
        begin: What is given before the first token; without it the first token itself is given and not learned.
        longest: The most tokens of a sequence, at least 2; None for no limit.
    """
    whole = (*begin, *ids)
    step = len(whole) if longest is None else longest - 1
    starts = range(0, max(len(whole) - 1, 1), step)
    return tuple(Turn(whole[start : start + 1], whole[start + 1 : start + 1 + step]) for start in starts)


def packed(lengths: Sequence[int], longest: int) -> tuple[tuple[int, ...], ...]:
    """Divide sequences into rows of at most `longest` tokens: best fit, the longest first.

    Args:
        lengths: Tokens of each sequence, at most `longest`.
        longest: The most tokens of a row.

    Returns:
        For each row the sequences in it, by their places; rows in the order of their first sequences.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # what is left of a row, and the row, in order
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        found = bisect_left(room, (lengths[place], -1))
        if found < len(room):
            left, row = room.pop(found)
        else:
            left, row = longest, len(rows)
            rows.append([])
        rows[row].append(place)
        insort(room, (left - lengths[place], row))
    return tuple(sorted(tuple(sorted(row)) for row in rows))
