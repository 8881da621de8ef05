"""Structure-aware mutation: a valid tree of dicts, lists and scalars, changed in a few places with bad intentions.

`MANYTUNE_CASES=20000` runs so many cases of each fuzz test instead of the few of the suite, `MANYTUNE_SEED` others.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

SEED = int(os.environ.get("MANYTUNE_SEED", "20261130"))
_CASES = os.environ.get("MANYTUNE_CASES")
#: Whether somebody asked for many cases, on a machine that does nothing else.
THOROUGH = _CASES is not None

NAMES = ["", "a", "__class__", "__init__", "model", "prompt", "..", "a/b", "\x00", "\u202e", "name" * 40]
SCALARS: list[Callable[[random.Random], Any]] = [
    lambda draw: None,
    lambda draw: draw.choice([True, False]),
    lambda draw: draw.choice([0, -1, 1, 2**31, 2**53 + 1, 2**64, -(10**40), 10**300]),
    lambda draw: draw.choice([0.0, -0.0, 0.5, 1e308, -1e308, 1e-320, float("nan"), float("inf")]),
    lambda draw: draw.choice(NAMES),
    lambda draw: draw.choice(
        ["9" * 5000, "a" * 20_000, "ab\n" * 300, "{{ 9**(9**9) }}", "(|.)" * 40 + "Q", "\ud800"]
    ),
    lambda draw: "".join(chr(draw.randrange(1, 0x3000)) for _ in range(draw.randrange(12))),
]
CONTAINERS: list[Callable[[random.Random], Any]] = [
    lambda draw: [],
    lambda draw: {},
    lambda draw: [scalar(draw)] * draw.choice([1, 2, 1000, 20_000]),
    lambda draw: {str(number): scalar(draw) for number in range(draw.choice([1, 3, 2000]))},
    lambda draw: [scalar(draw) for _ in range(draw.randrange(6))],
    lambda draw: nested(draw.choice([3, 60, 400])),
    lambda draw: {draw.choice(NAMES): {draw.choice(NAMES): scalar(draw)}},
]


def cases(usual: int) -> Iterator[tuple[int, random.Random]]:
    """The cases of a test, each with its own random numbers: a number alone repeats its case."""
    for case in range(int(_CASES or usual)):
        yield case, random.Random(f"{SEED} {case}")


def scalar(draw: random.Random) -> Any:
    """A value that a field rarely has."""
    return draw.choice(SCALARS)(draw)


def hostile(draw: random.Random) -> Any:
    """A value that nobody expects."""
    return scalar(draw) if draw.random() < 0.6 else draw.choice(CONTAINERS)(draw)


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def mutated(draw: random.Random, tree: Any) -> Any:
    """A copy of the tree in which one to three places are others."""
    changed = {"": copy.deepcopy(tree)}
    for _ in range(draw.choice([1, 1, 2, 3])):
        holder, key = draw.choice(list(_places(changed)))
        _change(draw, holder, key)
    return changed.get("")


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    keys = tree if isinstance(tree, dict) else range(min(len(tree), 50)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key]) if _depth_is_small(tree[key]) else ()


def _depth_is_small(tree: Any, most: int = 12) -> bool:
    while isinstance(tree, list) and len(tree) == 1 and most:
        tree, most = tree[0], most - 1
    return most > 0


def _change(draw: random.Random, holder: Any, key: Any) -> None:
    change = draw.randrange(6)
    if change == 0 and isinstance(holder, dict) and key != "":
        holder[draw.choice(NAMES) or "other"] = holder.pop(key)
    elif change == 1 and key != "":
        del holder[key]
    elif change == 2:
        holder[key] = [holder[key]] * draw.choice([1, 2, 30])
    elif change == 3 and isinstance(holder, dict):
        holder[draw.choice(NAMES) + "x"] = hostile(draw)
    else:
        holder[key] = hostile(draw)
