"""Conversations that are too long, shortened by whole turns.

A turn begins with a message of the user's and lasts to the next one, so a tool's answer stays with its call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from manytune.data.templates import Example


def without_oldest_turns(example: Example, fits: Callable[[Example], bool]) -> Example | None:
    """Return the example without as few of its oldest turns as makes it fit; None if none does.

    System messages at the beginning stay, and so does the last turn; answers that are dropped aren't learned.
    """
    begin = next((i for i, m in enumerate(example.segments) if m.role != "system"), len(example.segments))
    starts = [i for i, m in enumerate(example.segments) if m.role == "user" and i > begin]
    candidates = [_from(example, begin, start) for start in starts]
    return _first(candidates, fits)


def without_newest_turns(example: Example, fits: Callable[[Example], bool]) -> Example | None:
    """Return the example without as few of its newest answers as makes it fit; None if none does."""
    candidates = [
        replace(example.ending_at(place), earlier=example.earlier[:count])
        for count, place in enumerate(example.earlier)
    ]
    return _first(candidates[::-1], fits)


def _from(example: Example, begin: int, start: int) -> Example:
    dropped = start - begin
    return replace(
        example,
        segments=(*example.segments[:begin], *example.segments[start:]),
        earlier=tuple(place - dropped for place in example.earlier if place >= start),
    )


def _first(candidates: list[Example], fits: Callable[[Example], bool]) -> Example | None:
    """The first that fits, found by bisection: each is shorter than the one before it."""
    low, high = 0, len(candidates)
    while low < high:
        middle = (low + high) // 2
        if fits(candidates[middle]):
            high = middle
        else:
            low = middle + 1
    return candidates[low] if low < len(candidates) else None
