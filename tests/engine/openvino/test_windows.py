"""Tokens are divided into windows in which each finds its own ranks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manytune.engine.openvino.windows import RANKS, divide

NONE = slice(0, 0)


def ranges(*numbers, rank=RANKS):
    return [NONE if number is None else slice(rank * number, rank * (number + 1)) for number in numbers]


@pytest.mark.parametrize(
    ("tokens", "ranks", "expected"),
    [
        (ranges(*range(8)), 64, (2, 32)),  # an adapter for each token: four tokens a window
        (ranges(*4 * (0, 1)), 16, (2, 8)),
        (
            ranges(0, 0, 0, 1, 1, None, None, None),
            16,
            (2, 8),
        ),  # tokens without an adapter go where there is room
        (ranges(0, 0, 0, 1), 16, (1, 16)),  # unequal shares
        (ranges(0), 8, (1, 8)),
        (ranges(0, 1, rank=16), 32, (1, 32)),  # one token a window would take as long as two
        (ranges(*4 * (0, 1), rank=16), 32, (2, 16)),
    ],
)
def test_the_smallest_windows_that_fit_are_taken(tokens, ranks, expected):
    found = divide(tokens, ranks)
    assert (found.count, found.size) == expected


@given(st.lists(st.one_of(st.none(), st.integers(0, 15)), min_size=1, max_size=32))
def test_each_token_is_in_one_window_that_has_its_ranks(numbers):
    tokens = ranges(*numbers)
    found = divide(tokens, RANKS * 16)
    assert sorted(found.order) == list(range(len(tokens)))
    assert found.count * found.size >= RANKS * 16 and len(tokens) % found.count == 0
    for place, token in enumerate(found.order):
        window = place // (len(tokens) // found.count)
        own = tokens[token]
        assert own == NONE or window * found.size <= own.start < own.stop <= (window + 1) * found.size
