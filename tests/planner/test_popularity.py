"""Popularity of adapters: closed forms, and a cache that is simulated."""

import random
from collections import OrderedDict

import numpy as np
import pytest

from manytune.planner.popularity import distinct_in, lru_hit_rate, zipf_shares


def test_shares_fall_with_the_rank_and_sum_to_one() -> None:
    shares = zipf_shares(4, 1)
    assert shares == pytest.approx(np.array([12, 6, 4, 3]) / 25)
    assert zipf_shares(5, 0) == pytest.approx(np.full(5, 0.2))


def test_the_distinct_adapters_of_two_requests() -> None:
    assert distinct_in(zipf_shares(2, 0), 2) == pytest.approx(1.5)  # the same one half of the time
    assert distinct_in(zipf_shares(1, 1), 10) == pytest.approx(1)


def simulated(adapters: int, exponent: float, places: int) -> float:
    draw = random.Random(0)
    asked = draw.choices(range(adapters), zipf_shares(adapters, exponent).tolist(), k=40_000)
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for number, one in enumerate(asked):
        hits += number >= 10_000 and one in cache
        cache[one] = None
        cache.move_to_end(one)
        if len(cache) > places:
            cache.popitem(last=False)
    return hits / 30_000


@pytest.mark.parametrize(("exponent", "places"), [(1.0, 20), (1.0, 100), (0.6, 60), (0.0, 50)])
def test_the_hit_rate_is_that_of_a_simulated_cache(exponent: float, places: int) -> None:
    shares = zipf_shares(300, exponent)
    assert lru_hit_rate(shares, places) == pytest.approx(simulated(300, exponent, places), abs=0.02)


def test_no_place_hits_nothing_and_a_place_for_each_hits_all() -> None:
    shares = zipf_shares(10, 1)
    assert lru_hit_rate(shares, 0) == 0
    assert lru_hit_rate(shares, 10) == lru_hit_rate(shares, 11) == 1
