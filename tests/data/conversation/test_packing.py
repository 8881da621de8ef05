"""Documents: every token is learned once, and rows are filled."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from tests.chat_templates import tokenizer_of

from manytune.data.conversation.packing import packed, parts
from manytune.data.encoding.encode import Encoder
from manytune.data.encoding.encoded import rows_of
from manytune.data.templates import Example


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.booleans(), st.integers(2, 12) | st.none())
def test_every_token_is_learned_once_after_the_one_before_it(
    ids: list[int], begins: bool, longest: int | None
) -> None:
    begin = (99,) if begins else ()
    found = parts(ids, begin, longest)
    whole = [*begin, *ids]
    pairs = [pair for turn in found for pair in zip(turn.ids, turn.completion, strict=False)]
    assert pairs == list(pairwise(whole))
    assert all(len(turn.prompt) == 1 for turn in found)
    assert longest is None or all(len(turn.ids) <= longest for turn in found)


@given(st.lists(st.integers(1, 10), max_size=40))
def test_rows_hold_every_sequence_once_and_no_more_than_fits(lengths: list[int]) -> None:
    rows = packed(lengths, 10)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    assert all(sum(lengths[place] for place in row) <= 10 for row in rows)
    # Best fit leaves no two rows half empty.
    assert sum(2 * sum(lengths[place] for place in row) <= 10 for row in rows) <= 1


def test_documents_are_packed_up_to_max_length_and_long_ones_divided() -> None:
    encoder = Encoder(tokenizer_of("smollm2"), max_length=12)
    documents = [
        Example((), text, "x.jsonl", row) for row, text in enumerate(["a b", "c", "d " * 20, "e f"], start=1)
    ]
    found = encoder.encode_all(documents)
    assert (found.dropped, found.truncated) == ((), 0)
    assert sum(one.targets for one in found.kept) == sum(
        len(encoder.sequences(one, longest=1000)[0].completion_ids) for one in documents
    )
    rows = rows_of(found.kept)
    assert all(sum(len(one.input_ids) for one in row) <= 12 for row in rows)
    assert len(rows) < len(found.kept)
    assert "user" not in "".join(encoder.text(one.input_ids) for one in found.kept)
