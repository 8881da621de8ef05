"""Rates, an epoch's rows and their order."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manytune.data.mixing import (
    Mixture,
    divide_rows,
    explicit_rates,
    mix,
    proportional_rates,
    temperature_rates,
)
from manytune.errors import DataError

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=5)


def named(sizes: list[int]) -> dict[str, int]:
    return {f"task {place}": size for place, size in enumerate(sizes)}


def by_task(mixture: Mixture, rows: list[int]) -> list[list[int]]:
    """An epoch's rows apart by task, each numbered from the task's first row."""
    found: list[list[int]] = [[] for _ in mixture.sizes]
    for row in rows:
        start = 0
        for task, size in enumerate(mixture.sizes):
            if row < start + size:
                found[task].append(row - start)
                break
            start += size
    return found


def test_proportional_rates_are_the_shares_of_the_capped_sizes() -> None:
    assert proportional_rates([30, 10]) == (0.75, 0.25)
    assert proportional_rates([1000, 10, 30], cap=60) == (0.6, 0.1, 0.3)


def test_a_temperature_of_two_takes_square_roots() -> None:
    assert temperature_rates([900, 100], 2) == pytest.approx((0.75, 0.25))
    assert temperature_rates([10**6, 100, 25], 2, cap=225) == pytest.approx((15 / 30, 10 / 30, 5 / 30))


@given(SIZES)
def test_temperature_one_is_proportional_and_a_high_one_is_equal_shares(sizes: list[int]) -> None:
    assert temperature_rates(sizes, 1) == pytest.approx(proportional_rates(sizes))
    assert temperature_rates(sizes, 1e9) == pytest.approx([1 / len(sizes)] * len(sizes))


def test_explicit_rates_are_the_shares_of_the_weights() -> None:
    assert explicit_rates([1, 3]) == (0.25, 0.75)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.integers(0, 500))
def test_rows_are_divided_to_within_one_of_the_exact_share(weights: list[int], rows: int) -> None:
    counts = divide_rows(explicit_rates(weights), rows)
    assert sum(counts) == rows
    for weight, count in zip(weights, counts, strict=True):
        assert abs(count - Fraction(weight * rows, sum(weights))) < 1 + Fraction(1, 10**6)


@given(SIZES, st.integers(0, 3), st.integers(0, 3))
def test_without_a_cap_an_epoch_is_every_row_once(sizes: list[int], seed: int, epoch: int) -> None:
    assert sorted(mix(named(sizes)).epoch(seed, epoch)) == list(range(sum(sizes)))


@given(SIZES, st.integers(1, 60), st.integers(0, 3))
def test_a_capped_epoch_has_at_most_the_cap_of_each_task(sizes: list[int], cap: int, seed: int) -> None:
    mixture = mix(named(sizes), cap=cap)
    rows = mixture.epoch(seed, 0)
    assert [len(own) for own in by_task(mixture, rows)] == [min(size, cap) for size in sizes]
    assert len(set(rows)) == len(rows)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(0, 3), st.data())
def test_no_row_comes_again_before_all_others_of_its_task_have_come(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    weights = {name: data.draw(st.integers(1, 4)) for name in named(sizes)}
    try:
        mixture = mix(named(sizes), strategy="explicit", weights=weights)
    except DataError:  # a share of less than one row
        return
    seen: list[Counter[int]] = [Counter() for _ in sizes]
    for epoch in range(5):
        for task, own in enumerate(by_task(mixture, mixture.epoch(seed, epoch))):
            assert len(own) == mixture.counts[task]
            seen[task].update(own)
            times = [seen[task][row] for row in range(sizes[task])]
            assert max(times) - min(times) <= 1


def test_the_same_seed_and_epoch_give_the_same_order_and_others_another() -> None:
    mixture = mix({"a": 40, "b": 20})
    orders = [mixture.epoch(seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert mixture.epoch(0, 0) == orders[0]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_a_tasks_order_does_not_depend_on_the_other_tasks() -> None:
    alone = mix({"a": 50}, cap=10)
    other = mix({"b": 7, "a": 50}, cap=10)
    assert set(alone.epoch(3, 2)) == set(by_task(other, other.epoch(3, 2))[1])


def test_over_many_epochs_tasks_come_at_their_rates() -> None:
    mixture = mix({"big": 900, "small": 100}, strategy="temperature", temperature=2)
    assert mixture.rows_per_epoch == 1000
    assert mixture.counts == (750, 250)
    times = Counter(row for epoch in range(4) for row in mixture.epoch(0, epoch))
    assert [times[row] for row in range(900, 1000)] == [10] * 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cap": 0}, "a mixture's cap is at least 1 row; found 0"),
        ({"strategy": "temperature"}, "the strategy temperature needs a temperature, such as 2"),
        ({"strategy": "temperature", "temperature": 0.5}, "a number from 1; found 0.5"),
        ({"strategy": "temperature", "temperature": math.nan}, "a number from 1; found nan"),
        ({"temperature": 2.0}, "temperature goes with the strategy temperature, not proportional"),
        ({"strategy": "explicit", "cap": 5}, "cap goes with the strategy proportional or temperature"),
        ({"weights": {"a": 1.0}}, "weights goes with the strategy explicit, not proportional"),
        ({"strategy": "explicit", "weights": {"a": 1.0}}, "a weight of every task; 'b' has none"),
        ({"strategy": "explicit"}, "a weight of every task; 'a' has none"),
        ({"strategy": "explicit", "weights": {"a": 1.0, "b": -1.0}}, "a number above 0; found 1, -1"),
        (
            {"strategy": "explicit", "weights": {"a": 1e6, "b": 1.0}},
            "the task 'b' would never be trained on: its share of 1e-06 is less than one of the 50 rows",
        ),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        mix({"a": 40, "b": 10}, **options)  # type: ignore[arg-type]


def test_a_mixture_of_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match="at least one task"):
        mix({})
    with pytest.raises(DataError, match=r"at least one row; found 3, 0"):
        mix({"a": 3, "b": 0})
