from hypothesis import given
from hypothesis import strategies as st

from manytune.token_prefixes import common_prefix

TOKENS = st.lists(st.integers(0, 2), max_size=6)


@given(st.lists(TOKENS, min_size=1, max_size=4))
def test_it_is_the_longest_length_at_which_all_sequences_are_equal(sequences: list[list[int]]) -> None:
    lengths = range(min(map(len, sequences)) + 1)
    expected = max(n for n in lengths if all(one[:n] == sequences[0][:n] for one in sequences))
    assert common_prefix(*sequences) == expected


def test_a_sequence_that_is_the_start_of_another_is_shared_whole() -> None:
    assert common_prefix((5, 6), [5, 6, 7]) == 2
