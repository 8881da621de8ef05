"""A classifier's rows: how they become examples, which labels they have, how they are divided."""

import json
from collections import Counter
from pathlib import Path

import pytest

from manytune.data.dataset import read_splits
from manytune.data.labels.labelled import MOST_LABELS, LabelledForm, Labels, labels_of
from manytune.data.recipe import DataRecipe
from manytune.data.records import Record
from manytune.data.splits import split
from manytune.data.templates import Example, Segment
from manytune.errors import DataError, TemplateError


def rows(*labels: str) -> list[Example]:
    return [
        Example((Segment("user", f"t{n}"),), label, "a.csv", n) for n, label in enumerate(labels, start=1)
    ]


def test_a_row_is_its_text_or_two_and_its_label_as_text() -> None:
    form = LabelledForm("{{ a }}: {{ b }}", "gold", "{{ c }}")
    found = form.render(Record({"a": "x", "b": 2, "c": "y", "gold": 0}, "rows.jsonl", 7))
    assert [segment.text for segment in found.segments] == ["x: 2", "y"]
    assert (found.completion, found.where) == ("0", "rows.jsonl:7")
    assert form.fields_used() == {"a", "b", "c", "gold"}


@pytest.mark.parametrize(
    ("label", "message"),
    [(None, "label needs the field 'gold', which is null"), (" ", "label, the field 'gold', is empty")],
)
def test_a_row_without_a_label_is_an_error_with_its_line(label: object, message: str) -> None:
    with pytest.raises(TemplateError, match=rf"rows\.jsonl:7: .*{message}"):
        LabelledForm("{{ a }}", "gold").render(Record({"a": "x", "gold": label}, "rows.jsonl", 7))


def test_labels_are_sorted_numbers_by_size_and_counted() -> None:
    assert labels_of(rows("10", "9", "x", "9", "-1")) == Labels(("-1", "9", "10", "x"), (1, 2, 1, 1))
    assert labels_of(rows("b", "a", "b")).majority == ("b", 2 / 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "a"], "every training row has the label 'a'"),
        (["Yes", "no", "yes"], "'Yes' and 'yes' differ only in case or white space"),
        ([f"l{n}" for n in range(MOST_LABELS + 1)], f"{MOST_LABELS + 1} different labels"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        labels_of(rows(*labels))


def test_labels_read_back_what_a_manifest_holds_and_nothing_else() -> None:
    labels = Labels(("a", "b"), (1, 2))
    assert Labels.from_dict(labels.to_dict()) == labels
    for odd in (
        {"names": ["a"]},
        {"names": ["a", "a"]},
        {"names": ["a", "b"], "counts": [1]},
        {"names": "ab"},
    ):
        with pytest.raises(DataError, match="expected 2 to 200 different labels"):
            Labels.from_dict(odd)


def test_given_weights_are_scaled_to_a_mean_of_one_over_the_training_rows() -> None:
    found = Labels(("a", "b"), (3, 1)).weights({"a": 1.0, "b": 5.0})
    assert found == {"a": 0.5, "b": 2.5}  # 3 x 0.5 + 1 x 2.5 = 4 rows


def test_splits_have_an_equal_share_of_each_label_and_never_part_a_group(tmp_path: Path) -> None:
    lines = [
        {"text": f"text {n}", "label": "rare" if n % 10 == 0 else "often", "by": f"author {n // 2}"}
        for n in range(400)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    data = {"train": str(file), "text": "{{ text }}", "label": "label", "group_by": "by"}
    found = read_splits(DataRecipe.model_validate({**data, "validation": 0.2, "test": 0.2}))
    parts = {"train": found.train, "validation": found.validation, "test": found.test}
    shares = {
        name: Counter(example.completion for example in part)["rare"] / len(part)
        for name, part in parts.items()
    }
    assert shares == pytest.approx(dict.fromkeys(parts, 0.1), abs=0.02)
    groups = [{example.group for example in part} for part in parts.values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert {name: len(part) for name, part in parts.items()} == {"train": 240, "validation": 80, "test": 80}


def test_one_stratum_divides_as_none_does() -> None:
    shares = {"train": 0.7, "test": 0.3}
    plain = split(range(50), shares, key=str, seed=3)
    assert split(range(50), shares, key=str, seed=3, stratum=lambda _: "same") == plain
