"""Homes of keys: as many requests for each member, bounded loads, and keys that stay where they are."""

import math
import random
from collections import Counter

import pytest
from tests.random_cases import cases

from manytune.replicas import homes
from manytune.replicas.hashing import Ring
from manytune.replicas.homes import SLACK, Homes

KEYS = [f"adapter {number:064x}" for number in range(64)]


def asked(found, members, keys, loads=None):
    """Where each request goes while nothing else runs."""
    return [found.choose(key, loads or dict.fromkeys(members, 0)) for key in keys]


def test_new_keys_are_dealt_out_to_the_members_and_stay_there():
    members = ["0", "1", "2"]
    found = Homes(members)
    first = asked(found, members, KEYS[:30])
    assert Counter(first) == {(member, True): 10 for member in members}
    assert asked(found, members, KEYS[:30]) == first


def test_the_first_key_goes_where_the_circle_says():
    members = ["0", "1", "2"]
    for key in KEYS:
        assert Homes(members).choose(key, dict.fromkeys(members, 0)) == (next(Ring(members).order(key)), True)


def test_a_member_with_a_popular_key_gets_fewer_others():
    members = ["0", "1"]
    found = Homes(members)
    (popular, _), *_ = asked(found, members, [KEYS[0]] * 10)
    assert {member for member, _ in asked(found, members, KEYS[1:10])} == {"0", "1"} - {popular}


def test_keys_of_a_member_that_is_lost_come_back_when_it_does():
    members = ["0", "1", "2"]
    found = Homes(members)
    before = dict(zip(KEYS, asked(found, members, KEYS), strict=True))
    without = dict(zip(KEYS, asked(found, members, KEYS, {"0": 0, "1": 0}), strict=True))
    for key in KEYS:
        if before[key][0] == "2":
            order = [one for one in Ring(members).order(key) if one != "2"]
            assert without[key] == (order[0], False)  # the same one each time
        else:
            assert without[key] == before[key]
    assert dict(zip(KEYS, asked(found, members, KEYS), strict=True)) == before


def test_a_new_key_lives_with_one_of_those_that_work():
    found = Homes(["0", "1"])
    assert {found.choose(key, {"1": 0}) for key in KEYS} == {("1", True)}


def test_a_key_moves_from_a_full_member_if_the_busier_one_is_less_busy_afterwards():
    found = Homes(["0", "1"])
    for key in KEYS[:2]:  # both live with "0", which alone works
        found.choose(key, {"0": 0})
    assert found.choose(KEYS[0], {"0": 5, "1": 0}) == ("1", False)
    assert found.choose(KEYS[0], {"0": 0, "1": 0}) == ("1", True)
    # Alone, it would only change places.
    alone = Homes(["0", "1"])
    alone.choose(KEYS[0], {"0": 0})
    assert alone.choose(KEYS[0], {"0": 5, "1": 0}) == ("1", False)
    assert alone.choose(KEYS[0], {"0": 0, "1": 0}) == ("0", True)


def test_no_load_exceeds_the_capacity():
    draw = random.Random(20261130)
    for _ in range(cases(20)):
        members = [str(one) for one in range(draw.randint(1, 9))]
        found, loads, running = Homes(members), dict.fromkeys(members, 0), []
        popular = draw.sample(KEYS, 5)
        for _ in range(200):
            if running and draw.random() < 0.45:
                member, weight = running.pop(draw.randrange(len(running)))
                loads[member] -= weight
            weight = draw.choice([1, 1, 1, 8])
            limit = math.ceil((1 + SLACK) * (sum(loads.values()) + weight) / len(members))
            member, _ = found.choose(draw.choice(popular), loads, weight=weight)
            assert loads[member] < limit
            loads[member] += weight
            running.append((member, weight))


@pytest.mark.parametrize("count", [2, 4])
def test_under_zipf_traffic_nine_in_ten_requests_are_at_home_and_members_get_equal_shares(count):
    draw = random.Random(20261130)
    popularity = [1 / rank for rank in range(1, 65)]
    members = [str(one) for one in range(count)]
    found, loads, running, home, shares = Homes(members), dict.fromkeys(members, 0), [], 0, Counter()
    for _ in range(4000):
        if len(running) == 16 * count:  # clients, each with one request at a time
            loads[running.pop(draw.randrange(len(running)))] -= 1
        (key,) = draw.choices(KEYS, popularity)
        member, is_home = found.choose(key, loads)
        loads[member] += 1
        running.append(member)
        home += is_home
        shares[member] += 1
    assert home >= 0.9 * 4000
    assert max(shares.values()) <= 1.1 * 4000 / count


def test_only_so_many_keys_are_remembered():
    members = ["0", "1"]
    found = Homes(members, most=10)
    for number in range(1000):
        found.choose(f"prefix {number}", dict.fromkeys(members, 0))
    assert len(found._homes) == 10
    assert sum(found._asked.values()) == pytest.approx(sum(one.asked for one in found._homes.values()))


def test_what_was_asked_long_ago_counts_no_more(monkeypatch):
    monkeypatch.setattr(homes, "_LARGEST_UNIT", 100.0)  # so that counts are divided several times
    members = ["0", "1"]
    found = Homes(members)
    asked(found, members, [KEYS[0]] * 500)
    asked(found, members, [KEYS[1]] * 5000)
    first, second = (found._homes[key] for key in KEYS[:2])
    assert first.member != second.member and first.asked < 1e-6 * second.asked
    assert found._asked[first.member] == pytest.approx(first.asked)
