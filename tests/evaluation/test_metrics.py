"""What holds for every metric, and finding them by name."""

import pytest
from tests.evaluation.metrics.corpora import total

from manytune.errors import DataError
from manytune.evaluation.metrics import METRICS, metrics_named


def test_scores_lie_in_their_stated_bounds_and_a_perfect_answer_reaches_the_best():
    texts = ["The quick brown fox jumps over the lazy dog.", "Dogs ran home at night. Foxes slept."]
    of_another_form = {
        "perplexity",
        "ece",
        "tool_calls",
        "tool_names",
        "json_valid",
        "json_schema",
        "json_fields",
        "recorded",
    }
    of_numbers_or_words = {
        "rmse",
        "mae",
        "pearson",
        "spearman",
        "span_f1",
        "span_f1_macro",
        "span_precision",
        "span_recall",
        "tag_accuracy",
    }
    for name, metric in METRICS.items():
        if name not in of_another_form | of_numbers_or_words:
            assert total(name, texts, [[text] for text in texts]) == pytest.approx(metric.bounds[1])
            assert total(name, ["", ""], [[text] for text in texts]) == metric.bounds[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rouge1", "nrefs:1|type:rouge1|score:f1|stemmer:porter|mrefs:max|rouge_score:0.1.2"),
        ("exact_match", "nrefs:1|norm:nfkc+casefold+whitespace|mrefs:any"),
        ("perplexity", "nrefs:1|tokens:completion+end|mean:tokens|mrefs:all"),
    ],
)
def test_signatures_of_our_own_state_what_was_done(name, expected):
    assert METRICS[name].signature([["a"], ["b"]]) == expected


def test_a_signature_says_when_items_have_different_numbers_of_references():
    assert METRICS["rougeLsum"].signature([["a"], ["b", "c"]]).startswith("nrefs:var|type:rougeLsum|")


def test_metrics_are_found_by_name_once_each_and_in_the_order_asked_for():
    assert [metric.name for metric in metrics_named(["bleu", "rouge1", "bleu"])] == ["bleu", "rouge1"]
    with pytest.raises(
        DataError, match=r"unknown metric 'rogue1'\. Did you mean rouge1.*rougeLsum, bleu, chrf"
    ):
        metrics_named(["rogue1"])
    with pytest.raises(DataError, match="no metric given; choose from rouge1"):
        metrics_named([])
