"""Two one-sided tests of equivalence (Schuirmann 1987), and how much a paired comparison can find.

The usual test asks whether two systems differ; that it finds nothing doesn't show that they are equal. Here the null
hypothesis is that they differ by the margin or more, and rejecting it shows that they don't. The margin is a share of
the reference's score, so the lower test is of `system - (1 - margin) · reference > 0` and the upper one of `(1 +
margin) · reference - system > 0`: what is uncertain about the reference is in the test, too.

Everything works on influence values, one a cluster and training seed: the jackknife's pseudo-values of the score, which
for a mean over clusters of one size are the clusters' own scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from manytune.evaluation.metrics.base import Floats

POWER = 0.8
"""The chance with which something is to be found where the number of prompts that it takes is said."""

_HALVINGS = 60
_WIDEST = 4.0  # how far above its middle the interval of a ratio ends at most


@dataclass(frozen=True, slots=True)
class Paired:
    """Influence values of two systems on the same clusters.

    Attributes:
        system: `[clusters, seeds]`.
        reference: The same of the system that it is compared with.
        bounds: Lowest and highest possible score.
    """

    system: Floats
    reference: Floats
    bounds: tuple[float, float]

    def p_below(self, factor: float) -> float:
        """The p-value of the null hypothesis that the system's score is `factor` times the reference's, or less."""
        low, high = self.bounds
        lowest = self._seen or low - factor * high
        return float(p_positive(self.system - factor * self.reference, lowest))

    def p_above(self, factor: float) -> float:
        """The p-value of the null hypothesis that it is `factor` times the reference's, or more."""
        low, high = self.bounds
        lowest = self._seen or factor * low - high
        return float(p_positive(factor * self.reference - self.system, lowest))

    def p_outside(self, margin: float) -> float:
        """The p-value of the null hypothesis that the scores differ by this share of the reference's, or more."""
        return max(self.p_below(1 - margin), self.p_above(1 + margin))

    def ratio_interval(self, level: float) -> tuple[float, float] | None:
        """Which ratios of the scores the two one-sided tests don't reject; None if that has no ends.

        Args:
            level: 0.9 for tests at 5% each.
        """
        alpha = (1 - level) / 2
        low = _crossing(lambda factor: self.p_below(factor) - alpha, 0.0, self.ratio)
        high = _crossing(lambda factor: self.p_above(factor) - alpha, self.ratio + _WIDEST, self.ratio)
        return None if low is None or high is None else (low, high)

    @property
    def _seen(self) -> float:
        """The largest difference of any cluster, as a loss; 0 if none differs."""
        return -float(np.abs((self.system - self.reference).mean(axis=1)).max())

    @property
    def ratio(self) -> float:
        """The system's score as a share of the reference's."""
        return float(self.system.mean() / self.reference.mean())

    def clusters_needed(self, margin: float) -> int | None:
        """How many clusters would show equivalence with a chance of 80%, if the two were equal.

        The chance that both tests reject is `2 · Φ(margin / se - z(0.95)) - 1`, so `se` may be `margin / (z(0.95) +
        z(0.9))`, of which the variance between training seeds has its part already.

        Returns:
            The number; None if no number would do, as the training seeds alone differ too much.
        """
        clusters, of_seeds = self.system.shape
        difference = self.system - self.reference
        variance, seeds = components(difference)
        width = margin * float(self.reference.mean())
        allowed: float = (width / _quantiles(0.05, (1 + POWER) / 2)) ** 2
        if allowed <= seeds or variance == 0:
            return None
        if of_seeds > 1 and width < stats.t.ppf(0.95, of_seeds - 1) * math.sqrt(seeds):
            return None
        needed: float = clusters * float(variance) / (allowed - float(seeds))
        return math.ceil(needed)


def influence(of_seeds: Callable[[Floats], Floats], clusters: Floats) -> Floats:
    """The jackknife's pseudo-values, `[clusters, seeds]`, moved so that their mean is the score itself.

    Args:
        of_seeds: Each seed's score of a sum of statistics, `[..., k]` to `[..., seeds]`.
        clusters: Statistics, one row a cluster.
    """
    n = len(clusters)
    total = clusters.sum(axis=0)
    score = of_seeds(total)
    if n == 1:
        return np.asarray(score)[None, :]
    left_out = of_seeds(total - clusters)
    values: Floats = score + (n - 1) * (left_out.mean(axis=0) - left_out)
    return values


def detectable(system: Floats, reference: Floats, *, alpha: float) -> float | None:
    """The smallest true difference that a two-sided test of these clusters finds with a chance of 80%.

    `(z(1 - alpha / 2) + z(0.8)) · se`, of the clusters alone, as the paired test is. It doesn't depend on the
    difference that was observed: "observed power" would only repeat the p-value (Hoenig and Heisey 2001).

    Args:
        system: Influence values, `[clusters, seeds]`.
        reference: The same of the other system.
        alpha: The test's level; with several tests the one that its smallest p-value must be below.
    """
    difference = (system - reference).mean(axis=1)
    if len(difference) < 2:
        return None
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return _quantiles(alpha / 2, POWER) * error if error > 0 else None


def p_positive(values: Floats, lowest: float) -> Floats:
    """One-sided p-value of "the mean is 0 or less", with the variance that this null hypothesis allows.

    A t-test whose variance is the larger one of the sample's and of that under the null hypothesis: of the weights of
    the clusters that are most likely if the mean is 0 (empirical likelihood, Owen 1988). So rare large differences
    count as often as the margin needs them, and not as often as they happened to come; for pairs of right and wrong
    it is Tango's (1998) score test, where a plain t-test rejects a true difference at the margin far too often. Where
    no value is below 0, the unseen ones are at worst `lowest`, and p is at least the chance `(1 - q)ⁿ` of seeing none
    of the share q that they need (as Clopper and Pearson's).

    With several training seeds p is the larger one of two: over clusters, with the variance between the seeds' means
    added; and over the seeds' means alone, with their few degrees of freedom. So what is shown holds for other
    prompts and for other seeds; two seeds show little.

    Args:
        values: `[..., clusters, seeds]`.
        lowest: The lowest value to expect: the largest loss that was seen or, where nothing differs, the lowest
            possible value; minus infinity for none.
    """
    clusters, seeds = values.shape[-2:]
    of_clusters = values.mean(axis=-1)
    mean = of_clusters.mean(axis=-1)
    if clusters < 2:
        return np.ones_like(mean)
    own, between = components(values)
    inside = (of_clusters.min(axis=-1) < 0) & (mean > 0)
    under_null = np.where(inside, _null_variance(of_clusters) / (clusters - 1), 0.0)
    p = _student(mean, np.maximum(own, under_null) + between, clusters - 1)
    if seeds > 1:
        p = np.maximum(p, _student(mean, between, seeds - 1))
    unseen = np.zeros_like(mean) if math.isinf(lowest) else mean / (mean - lowest)
    alone = np.where(inside, 0.0, (1 - np.clip(unseen, 0, 1)) ** clusters)
    result: Floats = np.where(mean > 0, np.maximum(p, alone), np.maximum(p, 0.5))
    return result


def components(values: Floats) -> tuple[Floats, Floats]:
    """The variance of the mean of all values from clusters, and from training seeds.

    `[..., clusters, seeds]` to `[...]`. Both hold what clusters and seeds do together, so that their sum is a little
    too large rather than too small.
    """
    clusters, seeds = values.shape[-2:]
    own: Floats = values.mean(axis=-1).var(axis=-1, ddof=1) / clusters
    if seeds == 1:
        return own, np.zeros_like(own)
    between: Floats = values.mean(axis=-2).var(axis=-1, ddof=1) / seeds
    return own, between


def _student(mean: Floats, variance: Floats, freedom: int) -> Floats:
    """One-sided p-value of a mean with this variance; without any variance the sign decides."""
    error = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.where(error > 0, mean / error, np.sign(mean) * np.inf)
    result: Floats = np.where((error == 0) & (mean == 0), 0.5, stats.t.sf(statistic, freedom))
    return result


def _null_variance(values: Floats) -> Floats:
    """The variance of values whose weights make their mean 0 and are as likely as can be, `[..., n]` to `[...]`.

    Weights `1 / (n (1 + λ x))`, with λ where they make the mean 0; for means above 0.
    """
    n = values.shape[-1]
    lowest = np.minimum(values.min(axis=-1), -1e-12)
    low, high = np.zeros(values.shape[:-1]), (1 - 1 / n) / -lowest  # no weight is above 1
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        scaled = 1 + middle[..., None] * values
        positive = (values / np.maximum(scaled, 1e-300)).sum(axis=-1) > 0
        low, high = np.where(positive, middle, low), np.where(positive, high, middle)
    weights = 1 / np.maximum(n * (1 + low[..., None] * values), 1e-300)
    result: Floats = (weights * values**2).sum(axis=-1)
    return result


def _quantiles(alpha: float, power: float) -> float:
    return float(stats.norm.ppf(1 - alpha) + stats.norm.ppf(power))


def _crossing(function: Callable[[float], float], outer: float, inner: float) -> float | None:
    """Where a function is 0 between two places; None if it has one sign at both."""
    if not (function(outer) < 0 < function(inner)):
        return None
    return float(optimize.brentq(function, outer, inner, xtol=1e-5))
