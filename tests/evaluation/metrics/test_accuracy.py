import pytest
from tests.evaluation.metrics.corpora import total

from manytune.evaluation.metrics import METRICS
from manytune.evaluation.metrics.accuracy import normalise


def test_exact_match_is_the_share_of_answers_equal_to_any_reference_after_normalisation():
    answers = [" Paris ", "pa\u00a0ris", "Paris.", "LONDON"]
    targets = [["paris"], ["PA\nRIS"], ["Paris"], ["Rome", "london"]]
    assert total("exact_match", answers, targets) == 3 / 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [("  A\t b\n\nC ", "a b c"), ("Straße", "strasse"), ("ﬁne", "fine"), ("U.S.", "u.s.")],
)
def test_normalisation_folds_case_compatibility_forms_and_white_space_only(text, expected):
    assert normalise(text) == expected


def test_contains_looks_for_whole_words():
    answers = ["The capital is Paris.", "Parisian", "about 7 days", "70 days"]
    assert total("contains", answers, [["paris"], ["paris"], ["7", "seven"], ["7", "seven"]]) == 0.5
    assert "whole words" in METRICS["contains"].signature([["paris"]])
