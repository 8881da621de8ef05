"""What a check measures, against numbers counted by hand."""

from collections.abc import Callable
from typing import Any

import pytest

from manytune.data.check import Lengths, check
from manytune.data.encoding.encode import Encoder
from manytune.data.records import Record, Records, Rejected
from manytune.data.templates import PromptTemplate

TEMPLATE = PromptTemplate("{{ q }}", "{{ a }}")


def records(*rows: dict[str, object], rejected: tuple[Rejected, ...] = ()) -> Records:
    return Records(tuple(Record(fields, "x", row) for row, fields in enumerate(rows, start=1)), rejected)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([7], Lengths(7, 7, 7, 7)),
        ([4, 1, 3, 2], Lengths(1, 2, 4, 4)),
        (list(range(1, 101)), Lengths(1, 50, 95, 100)),
    ],
)
def test_lengths_are_those_of_the_nearest_rank(lengths: list[int], expected: Lengths) -> None:
    assert Lengths.of(lengths) == expected


def test_rows_alone_show_empty_fields_equal_rows_and_text_lengths() -> None:
    rows = ({"q": "ab", "n": 1}, {"q": " ", "n": 2}, {"n": 1, "q": "ab"}, {"q": None, "n": 0}, {"n": []})
    (file,) = check({"x": records(*rows)}).files
    assert (file.rows, file.rejected, file.duplicate_rows) == (5, (), 1)
    assert file.empty == {"q": 3, "n": 1}
    assert file.lengths == {"q, characters": Lengths(1, 2, 2, 2)}
    assert (file.duplicate_prompts, file.tokens) == (None, None)


def test_rejected_rows_of_all_steps_are_listed_in_order() -> None:
    broken = Rejected("x", 9, "broken")
    found = check(
        {"x": records({"q": "a", "a": ""}, {"q": "a", "a": "b"}, rejected=(broken,))}, template=TEMPLATE
    )
    assert [row.row for row in found.files[0].rejected] == [1, 9]
    assert found.files[0].rows == 3
    assert not found.passed


def test_a_row_that_the_chat_template_changes_is_rejected_with_its_reason(
    make_tokenizer: Callable[..., Any],
) -> None:
    changing = "{% for m in messages %}{{ m.content | replace('x', 'y') }}</s>{% endfor %}"
    encoder = Encoder(make_tokenizer(chat_template=changing), max_length=None)
    rows = records({"q": "a", "a": "b"}, {"q": "a", "a": "x"})
    (file,) = check({"x": rows}, template=TEMPLATE, encoder=encoder, max_length=3).files
    assert [(row.row, row.reason.split(" '")[0]) for row in file.rejected] == [
        (2, "the chat template changes the completion")
    ]
    assert file.lengths["together, tokens"] == Lengths(4, 4, 4, 4)  # a </s> b </s>
    assert file.tokens is not None
    assert file.tokens.over_length == 1


def test_a_file_without_any_usable_row_has_no_lengths() -> None:
    (file,) = check({"x": records({"q": "a", "a": ""})}, template=TEMPLATE).files
    assert file.lengths == {}


def test_a_prompt_in_two_files_fails_the_check() -> None:
    one, two = records({"q": "a", "a": "1"}), records({"q": "a", "a": "2"})
    assert not check({"one": one, "two": two}, template=TEMPLATE).passed
    assert check({"one": one, "two": records({"q": "b", "a": "2"})}, template=TEMPLATE).passed
