"""Paths of modules and parameters: shortening them, and showing them in messages."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence


def shortest_names(paths: Sequence[str], wanted: Sequence[str]) -> set[str]:
    """The shortest list of names for some of all paths: an ending where all paths with it are wanted, else the path."""
    chosen = set(wanted)
    by_ending: dict[str, list[str]] = {}
    for path in paths:
        by_ending.setdefault(path.rsplit(".", 1)[-1], []).append(path)
    names: set[str] = set()
    for path in wanted:
        ending = path.rsplit(".", 1)[-1]
        whole = not ending.isdigit() and all(other in chosen for other in by_ending[ending])
        names.add(ending if whole else path)
    return names


def lists_around(paths: Sequence[str]) -> list[str]:
    """What the numbered lists are called that paths lead through."""
    parts = [path.split(".") for path in paths]
    return [before for words in parts for before, word in itertools.pairwise(words) if word.isdigit()]


def shown(names: str | Collection[str] | None) -> str:
    """Names for a message, in an order that doesn't change from run to run."""
    return repr(names) if names is None or isinstance(names, str) else repr(sorted(names))
