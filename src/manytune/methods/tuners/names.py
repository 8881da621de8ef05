"""Paths of modules and parameters: shortening them, and showing them in messages."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterator, Sequence

_MOST_SHOWN = 40


def shortest_names(paths: Sequence[str], wanted: Sequence[str], parts: int = 1) -> set[str]:
    """The shortest list of names for some of all paths: an ending where all paths with it are wanted, else the path.

    Args:
        paths: All paths.
        wanted: Those to name.
        parts: How many parts of a path an ending may have.
    """
    chosen = set(wanted)
    names: set[str] = set()
    by_ending: dict[str, list[str]] = {}
    for path in paths:
        for ending in _endings(path, parts):
            by_ending.setdefault(ending, []).append(path)
    for path in wanted:
        whole = (e for e in _endings(path, parts) if all(other in chosen for other in by_ending[e]))
        names.add(next((ending for ending in whole if not ending.isdigit()), path))
    return names


def _endings(path: str, parts: int) -> list[str]:
    words = path.split(".")
    return [".".join(words[-count:]) for count in range(1, min(parts, len(words)) + 1)]


def endings(path: str) -> Iterator[str]:
    """A path and all that it ends in, from one dot on."""
    yield path
    while "." in path:
        path = path.partition(".")[2]
        yield path


def ends_in(path: str, names: Collection[str]) -> bool:
    """Whether a path ends in one of some names, in the middle of a word, too."""
    return any(path.endswith(name) for name in names)


def lists_around(paths: Sequence[str]) -> list[str]:
    """What the numbered lists are called that paths lead through."""
    parts = [path.split(".") for path in paths]
    return [before for words in parts for before, word in itertools.pairwise(words) if word.isdigit()]


def shown(names: str | Collection[str] | None) -> str:
    """Names for a message, in an order that doesn't change from run to run."""
    if names is None or isinstance(names, str):
        return repr(names)
    more = len(names) - _MOST_SHOWN
    first = heapq.nsmallest(_MOST_SHOWN, names)
    return repr(first) if more <= 0 else f"{repr(first)[:-1]}, ...] ({more:,} more)"
