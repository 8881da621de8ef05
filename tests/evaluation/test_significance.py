import numpy as np
import pytest
from scipy import stats
from tests.random_cases import cases, some
from tests.reference.resampling import bca, bootstrap_scores, randomization_p_value

from manytune.evaluation.metrics import METRICS
from manytune.evaluation.resampling import Resampling
from manytune.evaluation.results import Answer
from manytune.evaluation.significance import (
    bootstrap_interval,
    cluster_sums,
    paired_interval,
    paired_test,
    verdict,
)

UNIT = (0.0, 1.0)


def mean(sums):
    return sums[..., 0] / sums[..., 1]


def rows(scores):
    return np.column_stack([scores, np.ones(len(scores))])


def bleu_clusters(seed, n=9):
    """BLEU statistics of random word salads."""
    rng = np.random.default_rng(seed)
    words = np.array(["the", "a", "cat", "dog", "sat", "ran", "mat"])

    def text():
        return " ".join(rng.choice(words, size=rng.integers(6, 12)))

    answers = [Answer(text(), 8, "stop") for _ in range(n)]
    return METRICS["bleu"].statistics(answers, [[text(), text()] for _ in range(n)])


def test_items_of_a_group_are_summed_and_others_are_clusters_of_their_own():
    statistics = np.arange(10.0).reshape(5, 2)
    sums = cluster_sums(statistics, ["a", None, "a", "0", None])
    assert sums.tolist() == [[0 + 4, 1 + 5], [2, 3], [6, 7], [8, 9]]


def test_an_interval_agrees_with_efrons_formula_one_resample_at_a_time():
    scores = np.random.default_rng(0).beta(1, 4, size=25)
    clusters = rows(scores)
    jackknife = [float(np.delete(scores, i).mean()) for i in range(25)]
    slow = bootstrap_scores(lambda sample: np.mean([row[0] for row in sample]), clusters, 20_000, seed=1)
    low, high = bca(slow, scores.mean(), jackknife, level=0.95, student=True)
    interval = bootstrap_interval(
        mean, clusters, bounds=UNIT, resampling=Resampling(resamples=20_000, seed=2)
    )
    width = high - low
    assert interval.low == pytest.approx(low, abs=0.04 * width)
    assert interval.high == pytest.approx(high, abs=0.04 * width)


def test_an_interval_agrees_with_scipys_bca_where_students_correction_vanishes():
    scores = np.random.default_rng(3).beta(0.5, 2, size=900)
    theirs = stats.bootstrap(
        (scores,), np.mean, method="BCa", n_resamples=5000, rng=np.random.default_rng(4), batch=500
    ).confidence_interval
    ours = bootstrap_interval(mean, rows(scores), bounds=UNIT, resampling=Resampling(resamples=5000))
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.05 * width)


def test_the_same_seed_gives_the_same_interval_and_the_same_p_value():
    a, b = rows(np.random.default_rng(5).random(40)), rows(np.random.default_rng(6).random(40))
    for seed in (0, 1):
        first, second = (
            bootstrap_interval(mean, a, bounds=UNIT, resampling=Resampling(resamples=500, seed=seed))
            for _ in "ab"
        )
        assert first == second
    assert bootstrap_interval(
        mean, a, bounds=UNIT, resampling=Resampling(resamples=500, seed=0)
    ) != bootstrap_interval(mean, a, bounds=UNIT, resampling=Resampling(resamples=500, seed=1))
    assert paired_test(mean, a, b, resampling=Resampling(seed=3)) == paired_test(
        mean, a, b, resampling=Resampling(seed=3)
    )


def test_groups_of_equal_items_widen_the_interval_as_if_each_group_were_one_item():
    scores = np.random.default_rng(7).random(30)
    alone = bootstrap_interval(mean, rows(scores), bounds=UNIT, resampling=Resampling(resamples=2000))
    tripled = cluster_sums(rows(np.repeat(scores, 3)), [str(i // 3) for i in range(90)])
    grouped = bootstrap_interval(mean, tripled, bounds=UNIT, resampling=Resampling(resamples=2000))
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high), rel=1e-12)


def test_an_interval_of_bleu_is_of_the_corpus_and_not_of_sentences():
    clusters = bleu_clusters(8, n=40)
    bleu = METRICS["bleu"]
    corpus = float(bleu.aggregate(clusters.sum(axis=0)))
    sentences = float(bleu.aggregate(clusters).mean())
    interval = bootstrap_interval(
        bleu.aggregate, clusters, bounds=bleu.bounds, resampling=Resampling(resamples=2000)
    )
    assert interval.low < corpus < interval.high
    assert abs(corpus - sentences) > 1.0


@pytest.mark.parametrize(("successes", "trials"), [(0, 30), (30, 30), (0, 3)])
def test_without_variation_the_interval_is_clopper_and_pearsons(successes, trials):
    clusters = rows(np.repeat(1.0 if successes else 0.0, trials))
    interval = bootstrap_interval(mean, clusters, bounds=UNIT, resampling=Resampling(resamples=200))
    exact = stats.binomtest(successes, trials).proportion_ci(method="exact")
    assert (interval.low, interval.high) == pytest.approx((exact.low, exact.high), abs=1e-12)


def test_one_cluster_says_next_to_nothing_and_an_unbounded_score_nothing_at_all():
    interval = bootstrap_interval(mean, rows([0.4]), bounds=UNIT, resampling=Resampling(resamples=200))
    assert interval.low < 0.02 and interval.high > 0.98
    perplexity = METRICS["perplexity"]
    assert bootstrap_interval(perplexity.aggregate, np.array([[9.0, 3.0]]), bounds=perplexity.bounds) is None


def test_two_clusters_give_a_wide_interval_and_no_failure():
    interval = bootstrap_interval(mean, rows([0.2, 0.4]), bounds=UNIT, resampling=Resampling(resamples=500))
    assert (interval.low, interval.high) == pytest.approx((0.2, 0.4))


def test_the_interval_of_a_difference_uses_the_pairing():
    rng = np.random.default_rng(9)
    baseline = rng.beta(2, 2, size=60)
    system = baseline + 0.02 + rng.normal(0, 0.005, size=60)
    paired = paired_interval(
        mean, rows(baseline), rows(system), bounds=UNIT, resampling=Resampling(resamples=2000)
    )
    assert 0.015 < paired.low < 0.02 < paired.high < 0.025


@pytest.mark.parametrize("seed", range(5))
def test_an_exact_p_value_is_that_of_all_swaps_one_by_one(seed):
    bleu = METRICS["bleu"]
    a, b = bleu_clusters(seed), bleu_clusters(seed + 100)

    def score(clusters):
        return float(bleu.aggregate(np.sum(clusters, axis=0)))

    assert paired_test(bleu.aggregate, a, b) == randomization_p_value(score, list(a), list(b))


def test_for_means_the_test_is_scipys_sign_flip_test():
    rng = np.random.default_rng(11)
    a, b = rng.random(12), rng.random(12) + 0.2
    theirs = stats.permutation_test(
        (b, a), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf, vectorized=False
    )
    assert paired_test(mean, rows(a), rows(b)) == pytest.approx(theirs.pvalue)


def test_a_randomized_p_value_is_close_to_the_exact_one_and_never_zero():
    rng = np.random.default_rng(12)
    a, b = rows(rng.random(13)), rows(rng.random(13) + 0.15)
    exact = paired_test(mean, a, b, resampling=Resampling(resamples=10_000))
    drawn = paired_test(mean, a, b, resampling=Resampling(resamples=8_000))
    assert drawn == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 8_000) ** 0.5)
    assert (
        paired_test(mean, rows(np.zeros(50)), rows(np.ones(50)), resampling=Resampling(resamples=999))
        == 1 / 1000
    )


def test_equal_systems_have_p_value_one():
    same = rows(np.random.default_rng(13).random(40))
    assert paired_test(mean, same, same) == 1.0


def test_few_clusters_can_never_reach_significance():
    assert paired_test(mean, rows(np.zeros(5)), rows(np.ones(5))) == pytest.approx(2 / 32)


@pytest.mark.parametrize(
    ("difference", "p_value", "higher_is_better", "expected"),
    [
        (0.1, 0.01, True, "better"),
        (-0.1, 0.01, True, "worse"),
        (0.1, 0.01, False, "worse"),
        (-0.1, 0.01, False, "better"),
        (0.1, 0.05, True, "cannot tell"),
        (0.0, 0.01, True, "cannot tell"),
    ],
)
def test_a_verdict_follows_the_test_and_the_direction(difference, p_value, higher_is_better, expected):
    assert verdict(difference, p_value, higher_is_better=higher_is_better) == expected


def test_unpaired_or_empty_statistics_are_refused():
    with pytest.raises(ValueError, match=r"same clusters.*\(3, 2\) and \(4, 2\)"):
        paired_test(mean, rows(np.zeros(3)), rows(np.zeros(4)))
    with pytest.raises(ValueError, match="at least one"):
        paired_interval(mean, rows([]), rows([]), bounds=UNIT)
    with pytest.raises(ValueError, match="at least one item"):
        bootstrap_interval(mean, rows([]), bounds=UNIT)


SIMULATIONS = 2_000
INTERVALS = cases(500)
RESAMPLES = 500


@pytest.mark.slow
@pytest.mark.parametrize("group_size", some([1, 3], 3))
def test_intervals_hold_the_true_score_and_the_true_difference_as_often_as_they_say(group_size):
    rng = np.random.default_rng(20)
    groups = [str(i // group_size) for i in range(40 * group_size)]
    held = held_difference = 0
    for simulation in range(INTERVALS):
        # Items of a group share most of what makes them hard; their mean is that of Beta(2, 6), 0.25.
        hard = np.repeat(rng.beta(2, 6, size=40), group_size)
        baseline = hard + rng.normal(0, 0.02, size=len(hard))
        system = hard + 0.03 + rng.normal(0, 0.05, size=40).repeat(group_size)
        a, b = (cluster_sums(rows(scores), groups) for scores in (baseline, system))
        one = bootstrap_interval(
            mean, a, bounds=UNIT, resampling=Resampling(resamples=RESAMPLES, seed=simulation)
        )
        two = paired_interval(
            mean, a, b, bounds=UNIT, resampling=Resampling(resamples=RESAMPLES, seed=simulation)
        )
        held += one.low <= 0.25 <= one.high
        held_difference += two.low <= 0.03 <= two.high
    print(f"of {INTERVALS:,} intervals, {held:,} hold the score and {held_difference:,} the difference")
    assert 0.93 <= held / INTERVALS <= 0.97
    assert 0.93 <= held_difference / INTERVALS <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("group_size", [1, 3])
def test_the_test_rejects_a_true_null_as_often_as_it_says(group_size):
    rng = np.random.default_rng(21)
    groups = [str(i // group_size) for i in range(30 * group_size)]
    rejected = 0
    for simulation in range(SIMULATIONS):
        hard = np.repeat(rng.beta(2, 6, size=30), group_size)
        systems = [hard + rng.normal(0, 0.05, size=30).repeat(group_size) for _ in "ab"]
        a, b = (cluster_sums(rows(scores), groups) for scores in systems)
        rejected += (
            paired_test(mean, a, b, resampling=Resampling(resamples=RESAMPLES, seed=simulation)) < 0.05
        )
    print(f"of {SIMULATIONS:,} true nulls, {rejected:,} are rejected")
    assert 0.04 <= rejected / SIMULATIONS <= 0.06


@pytest.mark.slow
def test_ignoring_the_groups_would_reject_a_true_null_far_too_often():
    rng = np.random.default_rng(22)
    rejected = 0
    for simulation in range(200):
        effect = rng.normal(0, 0.05, size=30).repeat(3)
        baseline = rng.beta(2, 6, size=90)
        rejected += (
            paired_test(
                mean,
                rows(baseline),
                rows(baseline + effect),
                resampling=Resampling(resamples=500, seed=simulation),
            )
            < 0.05
        )
    assert rejected / 200 > 0.15
