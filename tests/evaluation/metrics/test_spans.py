"""Span F1 and the accuracy of tags; expected numbers by hand from their definitions."""

import pytest

from manytune.evaluation.metrics import METRICS
from manytune.evaluation.results import Answer

RIGHT = ["B-X I-X O B-Y", "B-X O", "O O"]
SAID = ["B-X I-X O B-X", "O O", "B-Z O"]


def total(name, said=SAID, right=RIGHT):
    metric = METRICS[name]
    rows = metric.statistics([Answer(text, 1, "stop") for text in said], [[text] for text in right])
    return float(metric.aggregate(rows.sum(axis=0)))


def test_a_span_is_right_if_its_words_and_its_type_are():
    # One of three said spans is right (X), of three that there are (X, Y, X).
    assert total("span_precision") == pytest.approx(1 / 3)
    assert total("span_recall") == pytest.approx(1 / 3)
    assert total("span_f1") == pytest.approx(1 / 3)
    assert total("span_f1", ["B-X O O B-Y", "B-X O", "O O"]) == pytest.approx(2 / 3)  # a shorter span is none


def test_the_macro_mean_is_over_types_and_those_that_no_reference_has_count_as_one():
    # X: 1 right, 1 wrong, 1 missed: 2/4; Y: none of 1: 0; Z, of no reference: 0.
    assert total("span_f1_macro") == pytest.approx((0.5 + 0 + 0) / 3)


def test_the_accuracy_of_tags_is_over_all_words_and_unread_ones_are_wrong():
    assert total("tag_accuracy") == pytest.approx(5 / 8)
    assert total("tag_accuracy", ["B-X I-X <cut> <cut>", "B-X O", "O O"]) == pytest.approx(6 / 8)


def test_nothing_said_where_nothing_is_scores_0_and_not_nan():
    assert total("span_f1", ["O"], ["O"]) == total("span_f1_macro", ["O"], ["O"]) == 0.0
