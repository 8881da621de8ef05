"""A file's form, by its columns."""

from typing import Any

import pytest

from manytune.data.conversation.detect import detect, unknown_form
from manytune.data.records import Record

TURNS = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"messages": TURNS}, "openai"),
        ({"messages": '[{"role": "user"}]', "id": 3}, "openai"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "sharegpt"),
        ({"conversation": TURNS}, "sharegpt"),
        ({"prompt": TURNS, "completion": TURNS}, "trl"),
        ({"prompt": "x", "completion": "y"}, "prompt-completion"),
        ({"instruction": "x", "input": "", "output": "y"}, "alpaca"),
        ({"question": "x", "answer": "y"}, "question-answer"),
        ({"document": "x", "summary": "y"}, "summarize"),
        ({"text": "x"}, "text"),
        ({"text": "x", "url": "u", "id": 1}, "text"),
        ({"text": "x", "label": 1}, None),
        ({"text": "x", "summary": "y"}, None),
        ({"messages": "hi"}, None),
        ({"dialogue": "x", "summary": "y"}, None),
    ],
)
def test_the_columns_say_the_form(fields: dict[str, Any], expected: str | None) -> None:
    assert detect([Record(fields, "x", 1)]) == expected


def test_a_column_that_the_first_rows_lack_counts() -> None:
    rows: list[dict[str, Any]] = [{"prompt": "x"}, {"prompt": "y", "completion": "z"}]
    assert detect([Record(fields, "x", row) for row, fields in enumerate(rows)]) == "prompt-completion"


def test_columns_that_say_nothing_are_named_with_what_to_do() -> None:
    error = unknown_form([Record({"dialogue": "x", "summary": "y"}, "x", 1)], "train.csv")
    assert str(error).startswith("train.csv: the rows have the columns dialogue, summary, which don't say")
    assert "Write data.prompt and data.completion" in str(error)
