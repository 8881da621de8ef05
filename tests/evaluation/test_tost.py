"""Equivalence tests: their level in simulations, Tango's score test as the oracle, and the numbers of prompts."""

import math

import numpy as np
import pytest
from scipy import stats

from manytune.evaluation.tost import Paired, detectable, influence, p_positive

RUNS = 2_000
MARGIN = 0.05
# 5% with the Monte-Carlo error of 2,000 runs: three standard errors.
MOST = 0.05 + 3 * math.sqrt(0.05 * 0.95 / RUNS)


def at_the_margin(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Paired differences whose true mean is minus the margin, `[runs, clusters, seeds]`."""
    if kind == "text scores, 60 prompts":
        return rng.normal(-MARGIN, 0.15, (RUNS, 60, 1))
    if kind == "skewed scores, 100 prompts":
        return (0.15 - MARGIN) - rng.exponential(0.15, (RUNS, 100, 1))
    drawn = rng.random((RUNS, 200, 1))
    if kind == "right or wrong, 200 prompts":
        return -(drawn < 0.12).astype(float) + (drawn > 0.93)
    if kind == "right or wrong, all losses, 200 prompts":
        return -(drawn < MARGIN).astype(float)
    seeds, noise = (3, 0.05) if kind == "three seeds that differ much" else (5, 0.02)
    prompts = rng.normal(-MARGIN, 0.1, (RUNS, 40, 1))
    return prompts + rng.normal(0, noise, (RUNS, 1, seeds)) + rng.normal(0, 0.1, (RUNS, 40, seeds))


@pytest.mark.parametrize(
    "kind",
    [
        "text scores, 60 prompts",
        "skewed scores, 100 prompts",
        "right or wrong, 200 prompts",
        "right or wrong, all losses, 200 prompts",
        "three seeds that differ much",
        "five seeds",
    ],
)
def test_a_true_difference_at_the_margin_is_called_equivalent_at_most_five_times_of_a_hundred(kind):
    values = at_the_margin(kind, np.random.default_rng(0)) + MARGIN
    assert np.mean(p_positive(values, -1.0) < 0.05) <= MOST


def test_systems_that_are_equal_are_found_equivalent_as_often_as_was_said():
    """`clusters_needed` is checked on its promise: with so many clusters both tests reject 4 times of 5."""
    rng = np.random.default_rng(1)
    reference = rng.normal(0.5, 0.1, (150, 1))
    few = Paired(reference + rng.normal(0, 0.1, (150, 1)), reference, (0.0, 1.0))
    needed = few.clusters_needed(MARGIN)
    deviation = (few.system - few.reference).std(ddof=1)
    differences = rng.normal(0, deviation, (RUNS, needed, 1))
    width = MARGIN * reference.mean()
    shown = np.maximum(p_positive(differences + width, -1.0), p_positive(width - differences, -1.0)) < 0.05
    assert np.mean(shown) == pytest.approx(0.8, abs=0.03)


def test_for_right_and_wrong_the_statistic_is_tangos():
    """Tango 1998, formula 3: the restricted estimate of one discordant probability is the root of a quadratic."""
    only_reference, only_system, n, margin = 9, 4, 120, 0.1
    b, c, delta = only_system, only_reference, -margin
    quadratic = 2 * n
    linear = -b - c + (2 * n - b + c) * delta
    constant = -c * delta * (1 - delta)
    q21 = (math.sqrt(linear**2 - 4 * quadratic * constant) - linear) / (2 * quadratic)
    tango = (b - c - n * delta) / math.sqrt(n * (2 * q21 + delta * (1 - delta)))
    differences = np.concatenate([-np.ones(c), np.ones(b), np.zeros(n - b - c)])
    ours = stats.t.isf(p_positive(differences[:, None] + margin, -1.0), n - 1)
    assert ours == pytest.approx(tango * math.sqrt((n - 1) / n), rel=1e-9)


def test_without_any_difference_as_many_prompts_are_needed_as_clopper_and_pearson_say():
    for n in (58, 59):
        assert p_positive(np.full((n, 1), 0.05 / 0.95), -1.0) == pytest.approx(0.95**n)
    assert p_positive(np.full((500, 1), 0.1), -math.inf) == 1.0  # a score without a bound


def test_the_interval_of_the_ratio_and_the_tests_agree():
    rng = np.random.default_rng(2)
    reference = rng.normal(0.5, 0.1, (200, 3))
    pair = Paired(reference + rng.normal(0, 0.05, (200, 3)), reference, (0.0, 1.0))
    low, high = pair.ratio_interval(0.9)
    assert low < pair.ratio < high
    assert pair.p_below(low) == pytest.approx(0.05, abs=1e-3)
    assert pair.p_above(high) == pytest.approx(0.05, abs=1e-3)
    assert (pair.p_outside(1 - low + 1e-3) < 0.05) == (high < 2 - low)


def test_seeds_that_differ_too_much_leave_no_number_of_prompts_that_would_do():
    seeds = np.array([0.4, 0.5, 0.6])
    reference = np.full((50, 3), 0.5)
    values = np.random.default_rng(3).normal(0, 0.05, (50, 1)) + seeds
    assert Paired(values, reference, (0.0, 1.0)).clusters_needed(0.02) is None


def test_influence_values_of_a_mean_are_the_items_and_their_mean_is_the_score():
    rows = np.array([[0.2, 1.0], [0.6, 1.0], [0.1, 1.0]])
    values = influence(lambda sums: (sums[..., 0] / sums[..., 1])[..., None], rows)
    assert values[:, 0] == pytest.approx(rows[:, 0])


def test_the_detectable_difference_is_found_by_the_test_four_times_of_five():
    rng = np.random.default_rng(4)
    noise = rng.normal(0, 0.2, (80, 1))
    found = detectable(noise, np.zeros((80, 1)), alpha=0.05)
    drawn = rng.normal(found, noise.std(ddof=1), (RUNS, 80))
    t = drawn.mean(axis=1) / (drawn.std(axis=1, ddof=1) / math.sqrt(80))
    assert np.mean(2 * stats.norm.sf(np.abs(t)) < 0.05) == pytest.approx(0.8, abs=0.03)
