"""How many tokens sequences have in common at their start."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix(first: Sequence[int], *others: Sequence[int]) -> int:
    """The number of leading tokens that all of these sequences share.

    Example:
        >>> common_prefix((1, 2, 3), (1, 2, 4), (1, 2, 3, 5))
        2
    """
    return min((_of_two(first, other) for other in others), default=len(first))


def _of_two(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
