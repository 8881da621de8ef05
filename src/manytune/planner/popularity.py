"""How often adapters are asked for, and how many of them that puts into a batch and keeps in a cache."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Shares = NDArray[np.float64]


def zipf_shares(adapters: int, exponent: float) -> Shares:
    """Each adapter's share of the requests, the most popular first: the n-th gets 1/n^exponent of the first's."""
    weights = np.arange(1, adapters + 1, dtype=np.float64) ** -exponent
    return np.asarray(weights / weights.sum())


def distinct_in(shares: Shares, requests: float) -> float:
    """Different adapters among requests that are drawn independently: the sum of 1 - (1 - p)^requests."""
    return float(-np.expm1(requests * np.log1p(-np.minimum(shares, 1 - 1e-15))).sum())


def lru_hit_rate(shares: Shares, places: int) -> float:
    """The share of requests that a cache of the least recently used adapters serves.

    Che's approximation: an adapter is there if it was asked for within a time t, the same for all, in which as many
    different ones are asked for as there are places (Che, Tung and Wang, "Hierarchical Web caching systems", IEEE JSAC
    20(7), 2002).

    Args:
        shares: Each adapter's share.
        places: How many the cache holds.
    """
    if places >= len(shares):
        return 1.0
    if places <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while _asked_within(shares, high) < places:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _asked_within(shares, middle) < places else (low, middle)
    return float((shares * -np.expm1(-shares * high)).sum())


def _asked_within(shares: Shares, time: float) -> float:
    return float(-np.expm1(-shares * time).sum())
