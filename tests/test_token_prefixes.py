import os

from hypothesis import given
from hypothesis import strategies as st

from manytune.token_prefixes import common_prefix

TOKENS = st.lists(st.integers(0, 2), max_size=6)


@given(st.lists(TOKENS, min_size=1, max_size=4))
def test_as_many_tokens_as_the_standard_librarys_common_prefix_has(sequences: list[list[int]]) -> None:
    assert common_prefix(*sequences) == len(os.path.commonprefix(sequences))


def test_a_sequence_that_is_the_start_of_another_is_shared_whole() -> None:
    assert common_prefix((5, 6), [5, 6, 7]) == 2
