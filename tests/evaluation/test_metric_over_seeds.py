"""All pairs, shares of the gain, and several training seeds."""

import dataclasses

import numpy as np
import pytest
from tests.evaluation import invented

from manytune.errors import DataError
from manytune.evaluation.evaluate import System, evaluate
from manytune.evaluation.metrics import METRICS
from manytune.evaluation.resampling import Resampling
from manytune.evaluation.significance import holm
from manytune.evaluation.wording import correction_sentence, seeds_sentence, share_sentence, share_text

ROUGE = [METRICS["rouge1"]]


def three(share_of_full, share_of_lora):
    asked = invented.items(12)
    base = System("base", "base", invented.answers(asked, 0.0, 1, 3.0))
    full = System("full", "full", invented.answers(asked, share_of_full, 2, 2.0))
    lora = System("lora", "lora", invented.answers(asked, share_of_lora, 3, 2.0))
    return asked, [base, full, lora]


def test_with_all_pairs_every_pair_is_tested_once_and_the_verdict_follows_the_corrected_test():
    asked, systems = three(0.6, 0.6)
    evaluation = evaluate(asked, systems, ROUGE, all_pairs=True, resampling=Resampling(resamples=500))
    pairs = [(found.system, found.baseline) for found in evaluation.comparisons]
    assert pairs == [("full", "base"), ("lora", "base"), ("lora", "full")]
    assert holm([found.p_value for found in evaluation.comparisons]) == tuple(
        found.p_adjusted for found in evaluation.comparisons
    )
    assert evaluation.comparison("lora", "rouge1", "full").verdict == "cannot tell"
    assert evaluation.comparison("lora", "rouge1").verdict == "better"
    assert "3 comparisons" in correction_sentence(evaluation)


def test_what_is_significant_alone_may_not_be_among_many():
    asked, (base, *_) = three(0.6, 0.6)
    others = [System(f"s{n}", "lora", invented.answers(asked, 0.15, 10 + n, 2.0)) for n in range(8)]
    evaluation = evaluate(asked, [base, *others], ROUGE, resampling=Resampling(resamples=2000))
    alone = [found for found in evaluation.comparisons if found.p_value < 0.05]
    corrected = [found for found in evaluation.comparisons if found.verdict != "cannot tell"]
    assert len(corrected) < len(alone)
    assert all(found.p_adjusted >= found.p_value for found in evaluation.comparisons)


def test_shares_of_the_gain_are_said_with_their_interval():
    asked, systems = three(0.6, 0.5)
    evaluation = evaluate(asked, systems, ROUGE, reference="full", resampling=Resampling(resamples=500))
    found = evaluation.share("lora", "rouge1")
    scores = [result.score("rouge1").value for result in evaluation.results]
    assert found.share == pytest.approx((scores[2] - scores[0]) / (scores[1] - scores[0]))
    assert found.low < found.share < found.high
    assert share_sentence(evaluation) == f"lora has {share_text(found)} of full's ROUGE-1 gain."


def test_the_share_that_is_said_is_another_methods_than_the_references():
    asked, (base, full, lora) = three(0.6, 0.5)
    again = dataclasses.replace(full, name="full, constrained")
    options = {"reference": "full", "resampling": Resampling(resamples=500)}
    evaluation = evaluate(asked, [base, full, again, lora], ROUGE, **options)
    assert share_sentence(evaluation).startswith("lora has ")
    alone = evaluate(asked, [base, full, again], ROUGE, **options)
    assert share_sentence(alone).startswith("full, constrained has 100% ")


def test_without_a_gain_there_are_no_shares():
    asked, systems = three(0.0, 0.6)
    evaluation = evaluate(asked, systems, ROUGE, reference="full", resampling=Resampling(resamples=500))
    assert evaluation.share("lora", "rouge1").share is None
    assert share_text(evaluation.share("lora", "rouge1")) == "–"
    assert "no gain" in share_sentence(evaluation)


@pytest.mark.parametrize("metric", ["rouge1", "bleu", "perplexity"])
def test_a_system_with_several_seeds_scores_the_mean_of_their_scores(metric):
    asked, (base, full, _) = three(0.6, 0.6)
    second, third = (invented.answers(asked, share, 20, 2.0) for share in (0.5, 0.7))
    several = dataclasses.replace(full, other_seeds=(second, third), seeds=(0, 1, 2))
    evaluation = evaluate(asked, [base, several], [METRICS[metric]], resampling=Resampling(resamples=300))
    score = evaluation.result("full").score(metric)
    alone = [
        evaluate(
            asked, [base, System("x", "full", one)], [METRICS[metric]], resampling=Resampling(resamples=9)
        )
        .result("x")
        .score(metric)
        for one in (full.answers, second, third)
    ]
    assert score.seeds == pytest.approx([one.value for one in alone])
    assert score.value == pytest.approx(np.mean(score.seeds))
    assert score.low < score.value < score.high
    assert evaluation.result("base").score(metric).seeds == ()
    assert f"full {METRICS[metric].label}" not in seeds_sentence(evaluation)
    assert "means over 3 training seeds" in seeds_sentence(evaluation)


def test_answers_and_seeds_must_match():
    asked, (base, full, lora) = three(0.6, 0.6)
    two = dataclasses.replace(full, other_seeds=(lora.answers,))
    three_seeds = dataclasses.replace(lora, other_seeds=(full.answers, full.answers))
    with pytest.raises(DataError, match="'full' was trained with 2 seeds and another system with 3"):
        evaluate(asked, [base, two, three_seeds], ROUGE, resampling=Resampling(resamples=9))
    short = dataclasses.replace(full, other_seeds=(lora.answers[:-1],))
    with pytest.raises(DataError, match="'full' has 35 answers to 36 items"):
        evaluate(asked, [base, short], ROUGE, resampling=Resampling(resamples=9))
