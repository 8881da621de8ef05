"""The slow twins of `evaluation/significance.py`: one resample at a time, from the definitions."""

from __future__ import annotations

import itertools

import numpy as np
from scipy import stats


def bootstrap_scores(score, clusters, resamples, seed):
    """Scores of bootstrap samples; `score` takes a list of clusters' rows."""
    rng = np.random.default_rng(seed)
    return [
        score([clusters[i] for i in rng.integers(0, len(clusters), size=len(clusters))])
        for _ in range(resamples)
    ]


def bca(scores, observed, jackknife, *, level, student):
    """Efron's BCa ends; `student` puts Hesterberg's quantile in the normal's place."""
    n = len(jackknife)
    below = sum(1.0 if s < observed else 0.5 if s == observed else 0.0 for s in scores) / len(scores)
    z0 = stats.norm.ppf(below)
    mean = sum(jackknife) / n
    a = sum((mean - j) ** 3 for j in jackknife) / (6 * sum((mean - j) ** 2 for j in jackknife) ** 1.5)
    tail = (1 - level) / 2
    z = stats.t.ppf(1 - tail, n - 1) * (n / (n - 1)) ** 0.5 if student else stats.norm.ppf(1 - tail)
    ends = [stats.norm.cdf(z0 + (z0 + q) / (1 - a * (z0 + q))) for q in (-z, z)]
    return tuple(np.quantile(scores, ends))


def randomization_p_value(score, baseline, system):
    """Exact two-sided p-value: every way to swap the systems' clusters."""
    observed = abs(score(system) - score(baseline))
    hits = ways = 0
    for swaps in itertools.product([False, True], repeat=len(baseline)):
        first = [b if swap else a for a, b, swap in zip(baseline, system, swaps, strict=True)]
        second = [a if swap else b for a, b, swap in zip(baseline, system, swaps, strict=True)]
        hits += abs(score(second) - score(first)) >= observed - 1e-12
        ways += 1
    return hits / ways
