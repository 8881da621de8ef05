"""Accuracy and macro F1; expected numbers by hand from their definitions."""

import pytest

from manytune.errors import DataError
from manytune.evaluation.answers import chosen
from manytune.evaluation.metrics import METRICS
from manytune.evaluation.results import Answer


def said(*texts):
    return [Answer(text, 1, "stop") for text in texts]


def total(name, answers, references):
    metric = METRICS[name]
    return float(metric.aggregate(metric.statistics(answers, references).sum(axis=0)))


LABELS = [["positive"], ["negative"], ["positive"], ["neutral"]]


def test_an_answer_is_read_as_the_label_that_it_begins_with():
    answers = said("Positive.", "negative, because", "positively good", "NEUTRAL")
    assert total("accuracy", answers, LABELS) == 0.75  # "positively" isn't the word "positive"


def test_of_two_labels_the_longer_one_is_read():
    references = [["very good"], ["very"]]
    assert total("accuracy", said("Very good indeed", "very bad"), references) == 1.0


def test_macro_f1_is_the_mean_of_the_labels_f1():
    # positive: TP 1, FP 1, FN 1 -> 1/2; negative: TP 0, FP 0, FN 1 -> 0; neutral: TP 1 -> 1
    answers = said("positive", "positive", "no idea", "neutral")
    assert total("f1", answers, LABELS) == pytest.approx((0.5 + 0.0 + 1.0) / 3)


def test_a_resample_without_a_label_leaves_it_out_of_the_mean():
    metric = METRICS["f1"]
    statistics = metric.statistics(said("positive", "negative", "positive", "positive"), LABELS)
    assert float(metric.aggregate(statistics[[0, 1, 2]].sum(axis=0))) == 1.0


def test_any_of_several_labels_is_right():
    references = [["yes", "maybe"], ["no"]]
    assert total("accuracy", said("maybe", "yes"), references) == 0.5
    # maybe: TP 1 -> 1; yes: FP 1 -> 0; no: FN 1 -> 0
    assert total("f1", said("maybe", "yes"), references) == pytest.approx(1 / 3)


def test_a_heads_choices_are_scored_like_answers():
    assert total("accuracy", chosen(["positive", "negative", "neutral", "neutral"]), LABELS) == 0.75


def test_too_many_labels_are_no_classification():
    references = [[f"text {n}"] for n in range(201)]
    with pytest.raises(DataError, match="201 different ones"):
        METRICS["f1"].statistics(said(*["x"] * 201), references)


def test_signatures_say_how_answers_are_read():
    assert METRICS["f1"].signature(LABELS).startswith("nrefs:1|labels:3|read:prefix|")
