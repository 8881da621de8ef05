"""Consistent hashing by its closed-form properties (Karger et al. 1997; Mirrokni et al. 2018)."""

import math
import random

import pytest
from tests.random_cases import cases

from manytune.replicas.hashing import POINTS, Ring, capacity, choose

KEYS = [f"adapter {number:064x}" for number in range(2000)]


def owners(ring, keys=KEYS):
    return {key: next(ring.order(key)) for key in keys}


@pytest.mark.parametrize("count", [2, 5, 16])
def test_members_get_equal_shares_of_the_keys_within_the_spread_of_their_points(count):
    found = list(owners(Ring([str(one) for one in range(count)])).values())
    mean = len(KEYS) / count
    # The standard deviation of a share is about 1/√POINTS of it, and that of drawing the keys √mean; five of both.
    bound = 5 * (mean / math.sqrt(POINTS) + math.sqrt(mean))
    assert all(abs(found.count(str(one)) - mean) < bound for one in range(count))


def test_when_a_member_leaves_only_its_keys_move_and_when_it_comes_back_they_come_back():
    before, after = owners(Ring(["0", "1", "2", "3"])), owners(Ring(["0", "1", "3"]))
    assert {key for key in KEYS if before[key] != after[key]} == {key for key in KEYS if before[key] == "2"}
    assert owners(Ring(["3", "2", "1", "0"])) == before


def test_keys_of_a_member_that_is_lost_go_where_they_would_go_without_it():
    whole, rest = Ring(["0", "1", "2", "3"]), Ring(["0", "1", "3"])
    loads = {"0": 0, "1": 0, "3": 0}
    assert all(choose(whole, key, loads) == next(rest.order(key)) for key in KEYS[:200])


def test_the_order_of_a_key_has_every_member_once():
    ring = Ring([str(one) for one in range(7)])
    assert all(sorted(ring.order(key)) == sorted(ring.members) for key in KEYS[:50])


def test_no_load_exceeds_the_capacity_and_a_key_stays_on_its_own_member_while_there_is_room():
    draw = random.Random(20261130)
    for _ in range(cases(20)):
        count, slack = draw.randint(1, 9), draw.choice([0.1, 0.25, 0.5, 1.0])
        ring = Ring([str(one) for one in range(count)], points=20)
        loads, running = dict.fromkeys(ring.members, 0), []
        popular = draw.sample(KEYS, 5)
        for _ in range(200):
            if running and draw.random() < 0.45:
                loads[running.pop(draw.randrange(len(running)))] -= 1
            key = draw.choice(popular)
            limit = math.ceil((1 + slack) * (sum(loads.values()) + 1) / count)
            chosen = choose(ring, key, loads, slack=slack)
            for passed in ring.order(key):
                if passed == chosen:
                    break
                assert loads[passed] >= limit
            loads[chosen] += 1
            running.append(chosen)
            assert loads[chosen] <= limit == capacity(sum(loads.values()) - 1, count, slack=slack)


def test_of_64_adapters_under_zipf_traffic_nine_in_ten_requests_stay_on_their_own_replica():
    draw = random.Random(20261130)
    popularity = [1 / rank for rank in range(1, 65)]
    ring, loads, running, own = Ring(["0", "1"]), {"0": 0, "1": 0}, [], 0
    for _ in range(2000):
        if len(running) == 32:  # clients, each with one request at a time
            loads[running.pop(draw.randrange(32))] -= 1
        (key,) = draw.choices(KEYS[:64], popularity)
        chosen = choose(ring, key, loads)
        loads[chosen] += 1
        running.append(chosen)
        own += chosen == next(ring.order(key))
    assert own >= 0.9 * 2000


def test_without_a_member_that_works_nobody_is_chosen():
    with pytest.raises(LookupError):
        choose(Ring(["0"]), "key", {})
