"""Confusion matrices and McNemar's test, from the answers of an evaluation."""

import pytest

from manytune.errors import DataError
from manytune.evaluation.classes import NO_LABEL, confusions, mcnemar_p, mcnemar_tests
from manytune.evaluation.evaluate import System, evaluate
from manytune.evaluation.metrics import metrics_named
from manytune.evaluation.report.class_tables import confusion_tables, mcnemar_table
from manytune.evaluation.report.markdown import render_markdown
from manytune.evaluation.report.page import render_report
from manytune.evaluation.resampling import Resampling
from manytune.evaluation.results import Answer, Evaluation, Item

RIGHT = ["Good", "Good", "Good", "bad", "bad", "bad"]


def answers(*texts: str) -> tuple[Answer, ...]:
    return tuple(Answer(text, tokens=1, finished="stop", confidence=0.9) for text in texts)


def evaluation(primary: str = "accuracy") -> Evaluation:
    items = [Item("text", (label,), "rows.jsonl", row) for row, label in enumerate(RIGHT, start=1)]
    systems = [
        System("majority class", "base", answers(*["Good"] * 6)),
        System("lora", "lora", answers("Good", "Good", "bad", "bad", "bad", "no idea")),
    ]
    metrics = metrics_named([primary, "f1" if primary == "accuracy" else "accuracy", "ece"])
    return evaluate(items, systems, metrics, resampling=Resampling(resamples=200))


def test_mcnemar_is_the_two_sided_binomial_test_of_the_items_that_differ() -> None:
    # By hand: of ten items that differ, two or fewer on one side: 2 (1 + 10 + 45) / 1024.
    assert mcnemar_p(2, 8) == pytest.approx(112 / 1024)
    assert mcnemar_p(8, 2) == mcnemar_p(2, 8)
    assert mcnemar_p(0, 0) == mcnemar_p(3, 3) == 1.0


def test_mcnemar_counts_what_one_system_alone_has_right() -> None:
    [found] = mcnemar_tests(evaluation())
    assert (found.system, found.baseline) == ("lora", "majority class")
    assert (found.only_system, found.only_baseline, found.p_value) == (2, 1, 1.0)


def test_a_confusion_matrix_has_a_row_a_label_as_it_is_written_and_a_column_for_no_label() -> None:
    majority, lora = confusions(evaluation())
    assert majority.labels == majority.answers == ("bad", "Good")
    assert majority.counts == ((0, 3), (0, 3))
    assert lora.answers == ("bad", "Good", NO_LABEL)
    assert lora.counts == ((2, 0, 1), (1, 2, 0))


def test_the_page_folds_the_matrices_and_markdown_has_them() -> None:
    found = evaluation()
    page, text = render_report(found, title="Labels"), render_markdown(found, title="Labels")
    assert "<summary>lora: answers by right label</summary>" in page
    assert "## lora: answers by right label" in text and "| Good | 1 | 2 | 0 |" in text
    assert "| lora compared with majority class | 2 | 1 |" in text


def test_where_accuracy_does_not_decide_there_is_neither() -> None:
    found = evaluation("f1")
    assert (mcnemar_tests(found), confusions(found), confusion_tables(found)) == ((), (), [])
    assert mcnemar_table(found) is None


def test_the_calibration_error_is_that_of_the_bins() -> None:
    """Three of six right at 0.9, all in one bin: |3/6 - 0.9|; and one of two right at 0.62 and 0.98, in two bins."""
    assert evaluation().results[0].score("ece").value == pytest.approx(0.4)
    [metric] = metrics_named(["ece"])
    two = [Answer("a", 1, "stop", confidence=0.62), Answer("a", 1, "stop", confidence=0.98)]
    rows = metric.statistics(two, [("a",), ("b",)])
    assert metric.aggregate(rows.sum(0)) == pytest.approx((abs(1 - 0.62) + abs(0 - 0.98)) / 2)
    with pytest.raises(DataError, match="a classifier's head gives and generated text doesn't"):
        metric.statistics([Answer("a", 1, "stop")], [("a",)])
