"""One metric of several systems: their scores with intervals, the tests between them, and shares of a gain."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from manytune.evaluation.equivalence import Equivalence, Margin, Within
from manytune.evaluation.metrics import Metric
from manytune.evaluation.metrics.base import Floats
from manytune.evaluation.resampling import Resampling
from manytune.evaluation.results import Answer, Comparison, GainShare, ScoreWithInterval, Verdict
from manytune.evaluation.significance import (
    bootstrap_interval,
    gain_share,
    holm,
    paired_interval,
    paired_test,
    verdict,
)
from manytune.evaluation.tost import Paired, detectable, influence


@dataclass(frozen=True, slots=True)
class MetricOverSeeds:
    """One metric over training seeds: rows hold the statistics of every seed, and the score is the mean of theirs.

    Attributes:
        metric: The metric.
        signature: How it is computed.
        seeds: How many training seeds there are.
        resampling: How intervals and tests are made.
    """

    metric: Metric
    signature: str
    seeds: int
    resampling: Resampling

    def statistics(self, answers: Sequence[Sequence[Answer]], references: Sequence[Sequence[str]]) -> Floats:
        """A system's rows, `[items, seeds * k]`.

        Args:
            answers: Its answers with each seed; with fewer seeds than there are, they are repeated.
            references: Of each item.
        """
        rows = [self.metric.statistics(of_seed, references) for of_seed in answers]
        return np.hstack(rows * (self.seeds // len(rows)))

    def aggregate(self, sums: Floats) -> Floats:
        """The mean of the seeds' scores."""
        result: Floats = self.of_seeds(sums).mean(axis=-1)
        return result

    def of_seeds(self, sums: Floats) -> Floats:
        """Each seed's score, `[..., seeds]`."""
        return self.metric.aggregate(sums.reshape(*sums.shape[:-1], self.seeds, -1))

    def score(self, clusters: Floats, *, each_seed: bool) -> ScoreWithInterval:
        """A system's score with its interval.

        Args:
            clusters: Its rows, summed over each cluster.
            each_seed: Whether to give every seed's score, too.
        """
        total = clusters.sum(axis=0)
        interval = bootstrap_interval(
            self.aggregate, clusters, bounds=self.metric.bounds, resampling=self.resampling
        )
        return ScoreWithInterval(
            metric=self.metric.name,
            value=float(self.aggregate(total)),
            low=interval.low if interval else None,
            high=interval.high if interval else None,
            signature=self.signature,
            seeds=tuple(map(float, self.of_seeds(total))) if each_seed else (),
        )

    def comparisons(self, clusters: Mapping[str, Floats], *, all_pairs: bool) -> list[Comparison]:
        """Every system with the first one, then perhaps the other pairs; p-values corrected for their number."""
        names = list(clusters)
        pairs = [(name, names[0]) for name in names[1:]]
        if all_pairs:
            pairs += [(other, one) for place, one in enumerate(names[1:], 2) for other in names[place:]]
        found = [self._comparison(clusters, system, baseline) for system, baseline in pairs]
        adjusted = holm([one.p_value for one in found])
        values = {name: influence(self.of_seeds, rows) for name, rows in clusters.items()}
        alpha = self.resampling.alpha / max(1, len(pairs))
        return [
            dataclasses.replace(
                one,
                p_adjusted=p,
                verdict=self._verdict(one.difference, p),
                detectable=detectable(values[one.system], values[one.baseline], alpha=alpha),
            )
            for one, p in zip(found, adjusted, strict=True)
        ]

    def equivalences(
        self, clusters: Mapping[str, Floats], margin: Margin, *, prompts: int
    ) -> list[Equivalence]:
        """Whether the systems after the first score within a margin of a reference; none does if that scores 0.

        Args:
            clusters: Each system's rows, summed over each cluster.
            margin: The reference, and how near is near enough.
            prompts: How many prompts the clusters have in all.
        """
        reference = influence(self.of_seeds, clusters[margin.reference])
        if not reference.mean() > 0:
            return []
        names = [name for name in list(clusters)[1:] if name != margin.reference]
        pairs = [
            Paired(influence(self.of_seeds, clusters[name]), reference, self.metric.bounds) for name in names
        ]
        p_values = holm([pair.p_outside(margin.share) for pair in pairs])
        return [
            self._equivalence(name, pair, p, margin, prompts / len(reference))
            for name, pair, p in zip(names, pairs, p_values, strict=True)
        ]

    def _equivalence(
        self, name: str, pair: Paired, p_value: float, margin: Margin, prompts_a_cluster: float
    ) -> Equivalence:
        interval = pair.ratio_interval(1 - 2 * self.resampling.alpha)
        low, high = interval or (None, None)
        verdict: Within = "within" if p_value < self.resampling.alpha else "cannot tell"
        if low is not None and low > 1 + margin.share:
            verdict = "better" if self.metric.higher_is_better else "worse"
        elif high is not None and high < 1 - margin.share:
            verdict = "worse" if self.metric.higher_is_better else "better"
        needed = pair.clusters_needed(margin.share) if verdict == "cannot tell" else None
        return Equivalence(
            system=name,
            reference=margin.reference,
            metric=self.metric.name,
            margin=margin.share,
            ratio=pair.ratio,
            low=low,
            high=high,
            p_value=p_value,
            verdict=verdict,
            prompts_needed=None if needed is None else round(needed * prompts_a_cluster),
        )

    def shares(
        self, clusters: Mapping[str, Floats], reference: str, comparisons: Sequence[Comparison]
    ) -> list[GainShare]:
        """How much of the reference's gain over the first system each of the others has."""
        baseline, *others = clusters
        (gain,) = (
            one
            for one in comparisons
            if (one.system, one.baseline, one.metric) == (reference, baseline, self.metric.name)
        )
        found = []
        for name in others:
            share, interval = None, None
            if gain.verdict == "better":
                share, interval = gain_share(
                    self.aggregate,
                    clusters[baseline],
                    clusters[reference],
                    clusters[name],
                    resampling=self.resampling,
                )
            ends = (interval.low, interval.high) if interval else (None, None)
            found.append(GainShare(name, reference, self.metric.name, share, *ends))
        return found

    def _comparison(self, clusters: Mapping[str, Floats], system: str, baseline: str) -> Comparison:
        pair = (self.aggregate, clusters[baseline], clusters[system])
        interval = paired_interval(*pair, bounds=self.metric.bounds, resampling=self.resampling)
        p_value = paired_test(*pair, resampling=self.resampling)
        theirs, ours = (float(self.aggregate(sums.sum(axis=0))) for sums in pair[1:])
        return Comparison(
            system=system,
            baseline=baseline,
            metric=self.metric.name,
            difference=ours - theirs,
            low=interval.low if interval else None,
            high=interval.high if interval else None,
            p_value=p_value,
            p_adjusted=p_value,
            verdict=self._verdict(ours - theirs, p_value),
        )

    def _verdict(self, difference: float, p_value: float) -> Verdict:
        better = self.metric.higher_is_better
        return verdict(difference, p_value, higher_is_better=better, alpha=self.resampling.alpha)
