import numpy as np
import pytest
from tests.evaluation import invented

from manytune.errors import DataError
from manytune.evaluation.evaluate import System, evaluate
from manytune.evaluation.metrics import METRICS
from manytune.evaluation.resampling import Resampling
from manytune.evaluation.results import Answer, Item
from manytune.evaluation.significance import bootstrap_interval, cluster_sums, paired_interval, paired_test

FEW = Resampling(resamples=99)


def say(*texts):
    return tuple(Answer(text, 1, "stop") for text in texts)


def test_every_system_gets_every_score_and_all_but_the_first_are_compared_with_it():
    evaluation = invented.evaluation(metrics=("rougeL", "bleu", "perplexity"))
    assert [result.name for result in evaluation.results] == ["base", "full", "lora"]
    assert all(
        [score.metric for score in result.scores] == ["rougeL", "bleu", "perplexity"]
        for result in evaluation.results
    )
    assert [(found.system, found.baseline, found.metric) for found in evaluation.comparisons] == [
        (system, "base", metric) for metric in ("rougeL", "bleu", "perplexity") for system in ("full", "lora")
    ]
    assert evaluation.primary == "rougeL"
    assert (evaluation.inference.clusters, len(evaluation.items)) == (8, 24)


def test_scores_intervals_and_tests_are_those_of_significance_over_the_groups():
    asked = invented.items(6)
    base, _, lora = invented.systems(asked)
    resampling = Resampling(level=0.9, resamples=300, seed=5)
    evaluation = evaluate(asked, [base, lora], [METRICS["bleu"]], resampling=resampling)
    metric, references = METRICS["bleu"], [item.references for item in asked]
    a, b = (
        cluster_sums(metric.statistics(one.answers, references), [item.group for item in asked])
        for one in (base, lora)
    )
    options = {"bounds": (0.0, 100.0), "resampling": resampling}
    score = evaluation.result("lora").score("bleu")
    alone = bootstrap_interval(metric.aggregate, b, **options)
    assert (score.value, score.low, score.high) == (metric.aggregate(b.sum(axis=0)), alone.low, alone.high)
    found = evaluation.comparison("lora", "bleu")
    paired = paired_interval(metric.aggregate, a, b, **options)
    assert (found.low, found.high) == (paired.low, paired.high)
    assert found.p_value == paired_test(metric.aggregate, a, b, resampling=resampling)
    assert found.difference == score.value - evaluation.result("base").score("bleu").value


def test_lower_perplexity_is_better():
    evaluation = invented.evaluation(metrics=("perplexity",))
    found = evaluation.comparison("lora", "perplexity")
    assert found.difference < 0
    assert found.verdict == "better"


def test_equal_answers_do_not_differ():
    asked = invented.items()
    base = invented.systems(asked)[0]
    twin = System("twin", "lora", base.answers)
    evaluation = evaluate(asked, [base, twin], [METRICS["rouge1"]], resampling=Resampling(resamples=200))
    found = evaluation.comparison("twin", "rouge1")
    assert (found.difference, found.p_value, found.verdict) == (0.0, 1.0, "cannot tell")


def test_items_without_groups_are_independent():
    asked = [Item("p", ("a",), "s", row) for row in range(1, 5)] + [Item("q", ("b",), "s", 9, group="g")] * 2
    evaluation = evaluate(
        asked,
        [System("base", "base", say(*"aabbbb"))],
        [METRICS["exact_match"]],
        resampling=FEW,
    )
    assert evaluation.inference.clusters == 5
    assert evaluation.results[0].score("exact_match").value == pytest.approx(4 / 6)
    assert evaluation.comparisons == ()


def test_an_unbounded_score_of_one_item_has_no_interval():
    asked = [Item("p", ("a",), "s", 1)]
    answers = (Answer("a", 1, "stop", 2.0, 2),)
    evaluation = evaluate(asked, [System("base", "base", answers)], [METRICS["perplexity"]], resampling=FEW)
    score = evaluation.results[0].scores[0]
    assert (score.value, score.low, score.high) == (pytest.approx(np.e), None, None)


ASKED = [Item("p", ("a",), "s", 1), Item("q", ("b",), "s", 2)]


@pytest.mark.parametrize(
    ("items", "systems", "options", "message"),
    [
        ([], [System("x", "base", ())], {}, "at least one item, one system and one metric; found 0, 1 and 1"),
        (ASKED, [], {}, "found 2, 0 and 1"),
        (ASKED, [System("x", "base", say("a"))], {}, "'x' has 1 answers to 2 items"),
        (ASKED, [System("x", "base", say("a", "b"))] * 2, {}, "two systems are called 'x'"),
        (ASKED, [System("x", "base", say("a", "b"))], {"primary": "bleu"}, "'bleu' isn't among .*: rouge1"),
    ],
)
def test_what_cannot_be_compared_is_refused(items, systems, options, message):
    with pytest.raises(DataError, match=message):
        evaluate(items, systems, [METRICS["rouge1"]], resampling=FEW, **options)
