"""How many cases tests have: few in `make test`; in `make test-deep` ten times as many, and whole matrices."""

import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import combinations
from typing import TypeVar

DEPTH = int(os.environ.get("MANYTUNE_DEPTH", "1"))
#: Whether matrices of cases are run whole.
DEEP = DEPTH > 1

T = TypeVar("T")


def cases(few: int) -> int:
    """So many, or as many times as many as MANYTUNE_DEPTH says."""
    return few * DEPTH


def some(everything: Sequence[T], *kept: T) -> list[T]:
    """All, or without MANYTUNE_DEPTH those that are kept, in the order of all."""
    assert set(map(repr, kept)) <= set(map(repr, everything))
    return list(everything) if DEEP else [one for one in everything if one in kept]


def covering(everything: Iterable[T], properties: Callable[[T], Sequence[Hashable]]) -> list[T]:
    """All cells of a matrix, or without MANYTUNE_DEPTH some in which any two properties meet that meet in any cell.

    Defects that need three properties at once are left to the whole matrix (Kuhn et al., "Software fault interactions
    and implications for software testing", 2004, find most of them with two).

    Args:
        everything: The cells.
        properties: A cell's properties, such as method, model and operation; as many for each cell.
    """
    found = list(everything)
    return found if DEEP else pairwise(found, properties)


def pairwise(everything: Sequence[T], properties: Callable[[T], Sequence[Hashable]]) -> list[T]:
    """The cells that together have every pair of properties; first those that have the most new ones."""

    def pairs(cell: T) -> set[object]:
        return set(combinations(enumerate(properties(cell)), 2))

    met: set[object] = set()
    chosen: set[int] = set()
    most = max((len(pairs(cell)) for cell in everything), default=0)
    for wanted in range(most, 0, -1):
        for place, cell in enumerate(everything):
            if len(pairs(cell) - met) >= wanted:
                met |= pairs(cell)
                chosen.add(place)
    return [everything[place] for place in sorted(chosen)]
