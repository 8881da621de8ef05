"""Confidence intervals and paired tests over the test items.

What varies is which items were drawn: everything here resamples items, or whole groups of items where items
of a group aren't independent (three questions about one paper). It says how far the scores would move on
other items of the same kind. It doesn't say how far another training seed would move them.

Everything works on sufficient statistics, one row a cluster, and on any score that is a function of
their sum, so that means and corpus scores are treated alike (see `metrics/base.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from manytune.evaluation.metrics.base import Floats
from manytune.evaluation.resampling import DEFAULT, Resampling
from manytune.evaluation.results import Verdict

Aggregate = Callable[[Floats], Floats]
"""Scores of sums of statistics, `[..., k]` to `[...]`."""

_CHUNK = 1_000  # resamples computed at once: bounds the memory, whatever the number of items
_DIGITS = 1e-12  # differences closer than this, relative to the observed one, count as equal


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float


def cluster_sums(statistics: Floats, groups: Sequence[str | None]) -> Floats:
    """Sum the rows of each group, `[items, k]` to `[clusters, k]`; without a group an item is its own cluster.

    Clusters are in the order of their first items, so that two systems' rows correspond.
    """
    order: dict[tuple[str, object], int] = {}
    cluster = [
        order.setdefault(("item", index) if group is None else ("group", group), len(order))
        for index, group in enumerate(groups)
    ]
    sums = np.zeros((len(order), statistics.shape[1]))
    np.add.at(sums, cluster, statistics)
    return sums


def bootstrap_interval(
    aggregate: Aggregate,
    clusters: Floats,
    *,
    bounds: tuple[float, float],
    resampling: Resampling = DEFAULT,
) -> Interval | None:
    """Bootstrap interval: bias-corrected and accelerated (BCa, Efron 1987), with Student's quantiles.

    Clusters are drawn with replacement, their statistics summed, and the score of each sum computed. BCa
    corrects the percentiles for bias and skew; `a` comes from the jackknife over clusters. Bootstrap
    percentiles are too narrow for few clusters, as they miss the factor `n / (n - 1)` of the variance and
    Student's tails; so the normal quantile in BCa's formula is replaced by `sqrt(n / (n - 1)) · t(n - 1)`
    (Hesterberg 2015, "expanded percentiles").

    Where every resample gives the same score (exact match with no match at all, or one cluster) resampling
    says nothing about the uncertainty. Then the chance `q` that a cluster would differ is bounded by `q ≤ 1 -
    (alpha / 2)^(1/n)` (Clopper and Pearson 1934) and the interval allows a share `q` of the clusters to
    have the lowest or the highest possible score.

    Args:
        aggregate: The score of a sum.
        clusters: Statistics, one row a cluster, `[n, k]`.
        bounds: Lowest and highest possible score.
        resampling: Confidence level, number of bootstrap samples, and seed.

    Returns:
        The interval; `None` if all resamples agree and the score has no bound, so that nothing can be said.

    Raises:
        ValueError: There are no clusters.
    """
    n = len(clusters)
    if n == 0:
        raise ValueError("an interval needs at least one item")
    total = clusters.sum(axis=0)
    observed = float(aggregate(total))
    scores = np.concatenate([aggregate(weights @ clusters) for weights in _resampled(n, resampling)])
    if n == 1 or np.ptp(scores) <= _DIGITS * max(1.0, abs(observed)):
        return _without_variation(observed, n, bounds, resampling.level)

    bias = _bias(scores, observed)
    acceleration = _acceleration(aggregate(total - clusters))
    half = stats.t.ppf(0.5 + resampling.level / 2, n - 1) * np.sqrt(n / (n - 1))
    ends = []
    for quantile in (-half, half):
        shifted = bias + quantile
        divisor = 1 - acceleration * shifted
        share = stats.norm.cdf(bias + shifted / divisor) if divisor > 0 else float(quantile > 0)
        ends.append(float(np.quantile(scores, share)))
    return Interval(*ends)


def paired_interval(
    aggregate: Aggregate,
    baseline: Floats,
    system: Floats,
    *,
    bounds: tuple[float, float],
    resampling: Resampling = DEFAULT,
) -> Interval | None:
    """Bootstrap interval of `score(system) - score(baseline)`, both resampled with the same clusters.

    Args:
        aggregate: The score of a sum.
        baseline: Statistics of the baseline, one row a cluster, `[n, k]`.
        system: Statistics of the system on the same clusters in the same order.
        bounds: Lowest and highest possible score.
        resampling: Confidence level, number of bootstrap samples, and seed.

    Raises:
        ValueError: The clusters don't correspond, or there are none.
    """
    _check_paired(baseline, system)
    k = baseline.shape[1]

    def difference(sums: Floats) -> Floats:
        return np.asarray(aggregate(sums[..., k:]) - aggregate(sums[..., :k]))

    span = bounds[1] - bounds[0]
    return bootstrap_interval(
        difference,
        np.hstack([baseline, system]),
        bounds=(-span, span),
        resampling=resampling,
    )


def paired_test(
    aggregate: Aggregate,
    baseline: Floats,
    system: Floats,
    *,
    resampling: Resampling = DEFAULT,
) -> float:
    """Two-sided p-value of the paired randomization test (Fisher 1935; for text, Riezler and Maxwell 2005).

    Null hypothesis: it makes no difference which of the two systems gave which of the two answers. Under it
    the pair of every cluster may be swapped; the p-value is the share of all ways to swap under which the
    scores differ at least as much as they do. For a mean of item scores this is the sign-flip test of the
    differences. If there are no more than `resamples` ways, all are tried and the p-value is exact; otherwise
    `resamples` are drawn at random and the observed way is counted among them, `(1 + hits) / (1 +
    resamples)`, so that the test keeps its level.

    Args:
        aggregate: The score of a sum.
        baseline: Statistics of the baseline, one row a cluster, `[n, k]`.
        system: Statistics of the system on the same clusters in the same order.
        resampling: Number of randomizations, and seed.

    Returns:
        The p-value; with `n` clusters it can't be below `2^(1 - n)`.

    Raises:
        ValueError: The clusters don't correspond, or there are none.
    """
    _check_paired(baseline, system)
    n = len(baseline)
    exchange = system - baseline
    total_baseline, total_system = baseline.sum(axis=0), system.sum(axis=0)
    observed = abs(float(aggregate(total_system) - aggregate(total_baseline)))
    threshold = observed * (1 - _DIGITS) - np.finfo(np.float64).tiny
    exact = 2.0**n <= resampling.resamples
    swaps = _all_swaps(n) if exact else _random_swaps(n, resampling)
    hits = 0
    for swapped in swaps:
        moved = swapped @ exchange
        differences = aggregate(total_system - moved) - aggregate(total_baseline + moved)
        hits += int((np.abs(differences) >= threshold).sum())
    return hits / 2.0**n if exact else (1 + hits) / (1 + resampling.resamples)


def gain_share(
    aggregate: Aggregate,
    baseline: Floats,
    reference: Floats,
    system: Floats,
    *,
    resampling: Resampling = DEFAULT,
) -> tuple[float, Interval | None]:
    """`(score(system) - score(baseline)) / (score(reference) - score(baseline))`, and its bootstrap interval.

    All three are resampled with the same clusters. It is meaningful only if the reference differs significantly
    from the baseline: a gain that may be zero has no shares.

    Args:
        aggregate: The score of a sum.
        baseline: Statistics of the untouched base, one row a cluster, `[n, k]`.
        reference: Of the system whose gain counts as 1.
        system: Of the system whose share is wanted.
        resampling: Confidence level, number of bootstrap samples, and seed.

    Raises:
        ValueError: The clusters don't correspond, or there are none.
    """
    _check_paired(baseline, system)
    _check_paired(baseline, reference)
    k = baseline.shape[1]

    def share(sums: Floats) -> Floats:
        zero, one, ours = (aggregate(sums[..., part * k : (part + 1) * k]) for part in range(3))
        return np.asarray((ours - zero) / (one - zero))

    clusters = np.hstack([baseline, reference, system])
    unbounded = (-np.inf, np.inf)
    interval = bootstrap_interval(share, clusters, bounds=unbounded, resampling=resampling)
    return float(share(clusters.sum(axis=0))), interval


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """P-values corrected for their number (Holm 1979), in their order.

    With `p(1) ≤ ... ≤ p(m)` the i-th becomes the largest of `(m - j + 1) · p(j)` over `j ≤ i`, at most 1.
    Rejecting those below alpha makes one or more false rejections with a chance of at most alpha, however the
    tests depend on each other.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for passed, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - passed) * p_values[place]))
        adjusted[place] = highest
    return tuple(adjusted)


def verdict(
    difference: float, p_value: float, *, higher_is_better: bool, alpha: float = DEFAULT.alpha
) -> Verdict:
    """The test's result in words: `"cannot tell"` unless `p_value` is below `alpha`."""
    if p_value >= alpha or difference == 0:
        return "cannot tell"
    return "better" if (difference > 0) == higher_is_better else "worse"


def _without_variation(observed: float, n: int, bounds: tuple[float, float], level: float) -> Interval | None:
    """The interval where resampling always gives the same score; see `bootstrap_interval`."""
    if not np.isfinite(bounds).all():
        return None
    share = 1 - ((1 - level) / 2) ** (1 / n)
    return Interval(
        observed - share * (observed - bounds[0]),
        observed + share * (bounds[1] - observed),
    )


def _check_paired(baseline: Floats, system: Floats) -> None:
    if baseline.shape != system.shape or len(baseline) == 0:
        raise ValueError(
            "a paired comparison needs both systems' statistics on the same clusters, at least one: "
            f"found shapes {baseline.shape} and {system.shape}"
        )


def _bias(scores: Floats, observed: float) -> float:
    """BCa's z₀, the normal quantile of the share of resampled scores below the observed one; finite."""
    below = np.mean(scores < observed) + 0.5 * np.mean(scores == observed)
    n = len(scores)
    return float(stats.norm.ppf(np.clip(below, 1 / (n + 1), n / (n + 1))))


def _acceleration(left_out: Floats) -> float:
    """BCa's a, from the scores without each of the clusters (jackknife)."""
    deviations = left_out.mean() - left_out
    spread = float((deviations**2).sum())
    return float((deviations**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0


def _resampled(n: int, resampling: Resampling) -> Iterator[Floats]:
    """How often each of `n` clusters is in each bootstrap sample, `[chunk, n]`."""
    rng = np.random.default_rng(resampling.seed)
    for size in _chunks(resampling.resamples):
        yield rng.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64)


def _random_swaps(n: int, resampling: Resampling) -> Iterator[Floats]:
    """Rows of fair coins, `[chunk, n]`."""
    rng = np.random.default_rng(resampling.seed)
    for size in _chunks(resampling.resamples):
        yield rng.integers(0, 2, size=(size, n)).astype(np.float64)


def _all_swaps(n: int) -> Iterator[Floats]:
    """Every way to swap `n` pairs or not, `[2^n, n]`."""
    ways: NDArray[np.int64] = np.arange(2**n)
    yield ((ways[:, None] >> np.arange(n)) & 1).astype(np.float64)


def _chunks(count: int) -> Iterator[int]:
    while count > 0:
        yield min(count, _CHUNK)
        count -= _CHUNK
