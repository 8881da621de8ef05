"""The rank that an adapter has in a slot."""

from __future__ import annotations

_SMALLEST = 4


def slot_rank(rank: int) -> int:
    """The power of two, at least 4, that a rank is filled up to, so that adapters of similar ranks share a stack."""
    return max(_SMALLEST, 1 << (rank - 1).bit_length())
