"""Requests by Zipf's law, and what caches of them can reach at best."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy


def draws(kinds: int, count: int, *, exponent: float = 1.0, seed: int = 0) -> tuple[list[int], numpy.ndarray]:
    """Independent requests, and how likely each kind is: the n-th is 1 / n^exponent as popular as the first."""
    weights = 1.0 / numpy.arange(1, kinds + 1) ** exponent
    probabilities = weights / weights.sum()
    generator = numpy.random.default_rng(seed)
    order = generator.permutation(kinds)  # a kind's number says nothing about its popularity
    return [int(order[n]) for n in generator.choice(kinds, count, p=probabilities)], probabilities


def belady_hit_rate(requests: Sequence[int], room: int) -> float:
    """The most that any cache can reach that loads what is asked for: the one asked for last makes room."""
    following = [len(requests)] * len(requests)
    last: dict[int, int] = {}
    for place in range(len(requests) - 1, -1, -1):
        following[place] = last.get(requests[place], len(requests))
        last[requests[place]] = place
    held: dict[int, int] = {}
    heap: list[tuple[int, int]] = []
    hits = 0
    for place, kind in enumerate(requests):
        hits += kind in held
        if kind not in held and len(held) == room:
            while True:
                ahead, victim = heapq.heappop(heap)
                if held.get(victim) == -ahead:
                    break
            del held[victim]
        held[kind] = following[place]
        heapq.heappush(heap, (-following[place], kind))
    return hits / len(requests)


def most_popular_hit_rate(requests: Sequence[int], room: int) -> float:
    """What a cache reaches that holds from the start what will be asked for most often, and never changes."""
    counts = numpy.bincount(numpy.asarray(requests))
    return float(numpy.sort(counts)[-room:].sum() / len(requests))


def lru_model_hit_rate(probabilities: numpy.ndarray, room: int, count: int) -> float:
    """What a least-recently-used cache reaches on average, empty at first: Che's approximation (Che et al., 2002).

    A kind is there if it was asked for within the last T requests, where T is how many requests fill the cache.
    """
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - numpy.exp(-probabilities * middle)).sum() < room else (low, middle)
    # While the cache fills, everything that was ever asked for is there.
    steps = numpy.minimum(numpy.arange(count), low)
    seen = numpy.array(
        [(probabilities * (1 - numpy.exp(-probabilities * t))).sum() for t in steps[:: max(1, count // 500)]]
    )
    return float(seen.mean())
