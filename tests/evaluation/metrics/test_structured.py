"""JSON in answers, against values counted by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.evaluation.metrics.corpora import total

from manytune.errors import DataError
from manytune.evaluation.metrics.structured import schema_metric
from manytune.evaluation.results import Answer


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"a": 1}', 1),
        (" [1, 2] \n", 1),
        ("3", 1),
        ("", 0),
        ("a", 0),
        ('{"a": 1} ok', 0),
        ("NaN", 0),
        ("[" * 100_000, 0),
    ],
)
def test_the_whole_answer_has_to_be_json(text: str, valid: float) -> None:
    assert total("json_valid", [text], [["{}"]]) == valid


@pytest.mark.parametrize(
    ("said", "right", "wrong", "missed"),
    [
        ('{"a": 1, "b": {"c": [1, 2]}}', 3, 0, 0),
        ('{"b": {"c": [1.0, 2]}, "a": 1}', 3, 0, 0),
        ('{"a": 1, "b": {"c": [1, 3]}}', 2, 1, 1),
        ('{"a": 1, "b": {"c": [1, 2]}, "d": 0}', 3, 1, 0),
        ('{"a": "1"}', 0, 1, 3),
        ("no idea", 0, 0, 3),
    ],
)
def test_fields_are_right_wrong_or_missed(said: str, right: int, wrong: int, missed: int) -> None:
    expected = 2 * right / (2 * right + wrong + missed)
    assert total("json_fields", [said], [['{"a": 1, "b": {"c": [1, 2]}}']]) == pytest.approx(expected)


def test_f1_is_of_the_summed_counts_and_the_nearest_reference_counts() -> None:
    references = [['{"a": 1}', '{"a": 2}'], ['{"a": 1, "b": 1, "c": 1}']]
    # 1 right; then 1 right, 2 missed: 2 * 2 / (2 * 2 + 0 + 2).
    assert total("json_fields", ['{"a": 2}', '{"a": 1}'], references) == pytest.approx(4 / 6)


def test_a_reference_that_is_no_json_is_an_error_that_shows_it() -> None:
    with pytest.raises(DataError, match=r"a reference isn't JSON .*: 'plain words'"):
        total("json_fields", ["{}"], [["plain words"]])


def test_a_schema_decides_what_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "person.json"
    file.write_text(
        json.dumps({"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}})
    )
    metric = schema_metric(file)
    answers = [Answer(text, 1, "stop") for text in ('{"name": "Ada"}', '{"name": 1}', "{}", "Ada")]
    assert np.array(metric.scores(answers, [["x"]] * 4)).tolist() == [1, 0, 0, 0]
    assert metric.signature([["x"]]) == "json:rfc8259|text:whole|schema:person.json"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1]", "a JSON schema is an object, not list"),
        ('{"type": "nothing"}', "this isn't a JSON schema"),
        ("{", "be read"),
    ],
)
def test_what_is_no_schema_is_refused_with_its_file(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "schema.json"
    file.write_text(text)
    with pytest.raises(DataError, match=expected) as caught:
        schema_metric(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_without_a_schema_nothing_can_be_valid_by_it() -> None:
    with pytest.raises(DataError, match="json_schema needs a schema: manytune evaluate --schema FILE"):
        total("json_schema", ["{}"], [["{}"]])
