"""Splits keep groups together, depend on content and seed only, and have the wanted sizes; leaks are found."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manytune.data.records import Record
from manytune.data.splits import Leak, group_key, leaks, record_key, split
from manytune.data.templates import Example, Segment
from manytune.errors import DataError

Item = tuple[int, str]  # a row and its group
ITEMS = st.lists(st.sampled_from("abcdefghijklmnopqrst"), min_size=1, max_size=60).map(
    lambda g: list(enumerate(g))
)
FRACTIONS = st.sampled_from(
    [
        {"train": 1.0},
        {"train": 0.9, "test": 0.1},
        {"train": 0.7, "validation": 0.1, "test": 0.2},
        {"a": 0.5, "b": 0.5},
    ]
)


def group_of(item: Item) -> str:
    return item[1]


def divided(items: list[Item], fractions: dict[str, float], seed: int) -> dict[str, tuple[Item, ...]] | None:
    try:
        return split(items, fractions, key=group_of, seed=seed)
    except DataError:
        return None  # too few groups, tested below


@given(ITEMS, FRACTIONS, st.integers(0, 5))
def test_each_item_goes_to_one_split_and_no_group_straddles(
    items: list[Item], fractions: dict[str, float], seed: int
) -> None:
    if parts := divided(items, fractions, seed):
        assert list(parts) == list(fractions)
        assert sorted(item for part in parts.values() for item in part) == items
        groups = [set(map(group_of, part)) for part in parts.values()]
        assert sum(map(len, groups)) == len(set().union(*groups))


@given(ITEMS, FRACTIONS, st.integers(0, 5), st.randoms())
def test_the_order_of_the_items_changes_nothing_but_the_order_inside_a_split(
    items: list[Item], fractions: dict[str, float], seed: int, random: "object"
) -> None:
    shuffled = list(items)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    parts, again = divided(items, fractions, seed), divided(shuffled, fractions, seed)
    assert (parts is None) == (again is None)
    if parts and again:
        assert {name: sorted(part) for name, part in again.items()} == {
            n: sorted(p) for n, p in parts.items()
        }
        assert all(list(part) == sorted(part) for part in parts.values())


@given(ITEMS, FRACTIONS, st.integers(0, 5))
def test_each_split_has_its_share_to_within_one_group(
    items: list[Item], fractions: dict[str, float], seed: int
) -> None:
    if parts := divided(items, fractions, seed):
        largest = max(Counter(map(group_of, items)).values())
        for name, part in parts.items():
            assert abs(len(part) - fractions[name] * len(items)) <= largest


def test_single_items_are_divided_exactly() -> None:
    parts = split(range(1000), {"train": 0.8, "validation": 0.1, "test": 0.1}, key=str, seed=0)
    assert {name: len(part) for name, part in parts.items()} == {"train": 800, "validation": 100, "test": 100}


def test_another_seed_gives_another_division_and_the_same_seed_the_same() -> None:
    first, again, other = (split(range(100), {"a": 0.5, "b": 0.5}, key=str, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_a_division_is_the_same_in_every_process_and_version() -> None:
    # The order of `printf "0 a" | b2sum` for a to f is f c a b e d.
    parts = split("abcdef", {"train": 0.5, "test": 0.5}, key=str, seed=0)
    assert parts == {"train": ("a", "c", "f"), "test": ("b", "d", "e")}


@pytest.mark.parametrize(
    ("items", "fractions", "expected"),
    [
        (
            "aaab",
            {"x": 0.4, "y": 0.3, "z": 0.3},
            "too few groups: 2 for the splits x, y, z. Rows with",
        ),
        ("", {"x": 1.0}, "too few groups: 0 for the splits x. Rows with"),
        (
            "abcd",
            {"x": 0.99, "y": 0.01},
            "the split 'y' would be empty: its share is 0.01 of 4 rows in 4 groups",
        ),
        ("abcd", {"x": 0.5, "y": 0.4}, "the splits' shares must add up to 1, not 0.9; found x 0.5, y 0.4"),
        (
            "abcd",
            {"x": 1.5, "y": -0.5},
            "each split's share must be above 0 and at most 1; found x 1.5, y -0.5",
        ),
        ("abcd", {}, "the splits' shares must add up to 1, not 0; found none"),
    ],
)
def test_a_division_that_is_impossible_is_an_error(
    items: str, fractions: dict[str, float], expected: str
) -> None:
    with pytest.raises(DataError) as caught:
        split(items, fractions, key=str, seed=0)
    assert str(caught.value).startswith(expected)


def example(prompt: str, source: str = "a", row: int = 1, group: str | None = None) -> Example:
    return Example((Segment("user", prompt),), "answer", source, row, group)


def test_examples_with_one_group_or_else_one_prompt_have_one_key() -> None:
    assert group_key(example("p", group="g")) == group_key(example("q", group="g"))
    assert group_key(example("same  prompt")) == group_key(example("same prompt\n"))
    assert group_key(example("p")) != group_key(example("q"))
    assert group_key(example("g")) != group_key(example("q", group="g"))


def test_rows_with_one_field_or_else_equal_fields_have_one_key() -> None:
    one, two = Record({"a": 1, "b": 2}, "x", 1), Record({"b": 2, "a": 1}, "x", 2)
    assert record_key(one) == record_key(two) != record_key(Record({"a": 1}, "x", 3))
    assert record_key(one, "a") == record_key(Record({"a": 1}, "x", 3), "a") == "1"


@pytest.mark.parametrize("fields", [{"papr": 1}, {"paper": None}])
def test_a_row_without_its_group_is_an_error(fields: dict[str, object]) -> None:
    with pytest.raises(DataError, match="x:3: group_by needs the field 'paper'"):
        record_key(Record(fields, "x", 3), "paper")


def test_prompts_in_two_splits_are_leaks_whatever_their_white_space() -> None:
    found = leaks(
        {
            "train": [example("one", "a", 1), example("two  words", "a", 2), example("two words", "a", 3)],
            "test": [example("two\nwords", "b", 9), example("three", "b", 10)],
        }
    )
    assert found == (Leak("two words", {"train": "a:2", "test": "b:9"}),)


def test_a_prompt_twice_in_one_split_is_no_leak() -> None:
    assert leaks({"train": [example("one"), example("one")], "test": [example("two")]}) == ()
