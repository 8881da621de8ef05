"""Which tokens are multiplied with which ranks.

Each token needs the ranks of its own adapter only. If all tokens were multiplied with the ranks of all adapters, 32
tokens with an adapter each would take 32 times as many multiplications as needed. So tokens and ranks are divided into
equally many windows, as equal in size as the products of a batch have to be, such that each token's ranks are in its
window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Ranges of ranks are multiples of this.
RANKS = 8
#: With fewer tokens a product takes about as long: measured with 32 tokens and 256 ranks.
_FEWEST_TOKENS = 4


@dataclass(frozen=True)
class Windows:
    """A division of a forward's tokens.

    Attributes:
        count: Number of windows.
        size: Ranks of each.
        order: The tokens, window after window, equally many in each.
    """

    count: int
    size: int
    order: tuple[int, ...]


def divide(ranges: Sequence[slice], ranks: int) -> Windows:
    """The division with the fewest multiplications; all tokens are one window if there is no other.

    Args:
        ranges: Each token's ranks, multiples of `RANKS`; an empty range for tokens that need none.
        ranks: Number of ranks, a multiple of `RANKS`.
    """
    tokens = len(ranges)
    size = RANKS
    while size < ranks:
        count = -(-ranks // size)
        width, left = divmod(tokens, count)
        if not left and width >= _FEWEST_TOKENS:
            order = _order(ranges, count, size, width)
            if order is not None:
                return Windows(count, size, order)
        size *= 2
    return Windows(1, ranks, tuple(range(tokens)))


def _order(ranges: Sequence[slice], count: int, size: int, width: int) -> tuple[int, ...] | None:
    """The tokens with each one's ranks in its window; None if there is no such order."""
    windows: list[list[int]] = [[] for _ in range(count)]
    free = []
    for token, own in enumerate(ranges):
        if own.start == own.stop:
            free.append(token)
        elif own.start // size != (own.stop - 1) // size:
            return None
        else:
            windows[own.start // size].append(token)
    if max(map(len, windows)) > width:
        return None
    for window in windows:
        while len(window) < width:
            window.append(free.pop())
    return tuple(token for window in windows for token in window)
