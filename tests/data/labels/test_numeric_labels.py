"""A regression's labels: which texts are numbers, on which scale they are learned, what is refused."""

import json
from pathlib import Path

import pytest

from manytune.data.dataset import read_splits
from manytune.data.labels.label_kinds import labels_from
from manytune.data.labels.labelled import LabelledForm
from manytune.data.labels.numeric_labels import NumericLabels, Scale, number_in, numeric_labels_of
from manytune.data.recipe import DataRecipe
from manytune.data.records import Record
from manytune.data.templates import Example, Segment
from manytune.errors import DataError, TemplateError


def rows(*labels: str) -> list[Example]:
    return [
        Example((Segment("user", f"t{n}"),), label, "a.csv", n) for n, label in enumerate(labels, start=1)
    ]


def test_numbers_are_finite_and_in_decimal_notation() -> None:
    assert [number_in(text) for text in ("3", "-1.5", " .5 ", "1e-3", "+2.")] == [3, -1.5, 0.5, 1e-3, 2]
    for text in ("", "nan", "inf", "1e999", "1e31", "1,000", "1_000", "true", "0x1", "3 stars"):
        assert number_in(text) is None


def test_labels_are_standardized_by_the_training_rows_unless_a_scale_is_given() -> None:
    examples = rows("1", "2", "6")  # mean 3, variance (4 + 1 + 9) / 3
    found = numeric_labels_of(examples)
    assert (found.mean, found.rows) == (3.0, 3) and found.deviation == pytest.approx((14 / 3) ** 0.5)
    learned = [found.target(example) for example in examples]
    assert sum(learned) == pytest.approx(0) and sum(one**2 for one in learned) == pytest.approx(3)
    assert [found.value(one) for one in learned] == pytest.approx([1, 2, 6])
    plain, given = numeric_labels_of(examples, False), numeric_labels_of(examples, Scale(1.0, 2.0))
    assert (plain.target(examples[2]), given.target(examples[2]), given.mean) == (6.0, 2.5, 3.0)
    assert labels_from(json.loads(json.dumps(given.to_dict()))) == given


@pytest.mark.parametrize(
    "odd", [{}, {"scale": {"mean": 0, "deviation": 0}}, {"mean": "1"}, {"mean": float("nan")}, {"rows": None}]
)
def test_a_manifest_that_holds_something_else_is_refused(odd: dict[str, object]) -> None:
    whole = NumericLabels(1.0, 2.0, 3).to_dict()
    with pytest.raises(DataError, match="expected a mean, a deviation"):
        labels_from({**whole, **odd} if odd else {"task": "regression"})


def test_equal_labels_and_texts_are_refused() -> None:
    with pytest.raises(DataError, match=r"a\.csv: every training row has the label 3; a regression needs"):
        numeric_labels_of(rows("3", "3.0"))
    with pytest.raises(DataError, match=r"a\.csv:2: the label 'good' isn't a number"):
        numeric_labels_of(rows("3", "good"))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "label needs the field 'gold', which is null"),
        ("", "the label, the field 'gold', is empty"),
        ("three", "the label 'three' isn't a number; task: regression needs a finite one"),
        (float("nan"), "the field 'gold', which is NaN"),
        (True, "isn't a number"),
    ],
)
def test_a_label_that_is_no_number_is_an_error_with_its_line(label: object, message: str) -> None:
    with pytest.raises(TemplateError, match=rf"rows\.jsonl:7: .*{message}"):
        LabelledForm("{{ a }}", "gold", is_numeric=True).render(
            Record({"a": "x", "gold": label}, "rows.jsonl", 7)
        )


def test_rows_without_a_number_are_left_out_and_counted_if_the_recipe_says_so(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"t": f"text {n}", "y": n if n % 4 else "?"}) for n in range(8)))
    data = {"train": str(file), "text": "{{ t }}", "label": "y", "validation": None, "on_error": "skip"}
    found = read_splits(DataRecipe.model_validate(data).of_numbers())
    assert [row.row for row in found.left_out] == [1, 5] and len(found.train) == 6


@pytest.mark.parametrize(
    "odd", [10**400, float("nan"), float("inf"), "1", None, 1e31], ids=lambda value: repr(value)[:20]
)
def test_a_scale_in_a_manifest_has_finite_numbers(odd: object) -> None:
    content = {"mean": 1.0, "deviation": 1.0, "rows": 3, "scale": {"mean": odd, "deviation": 1.0}}
    with pytest.raises(DataError, match="expected a mean, a deviation"):
        NumericLabels.from_dict(content)
