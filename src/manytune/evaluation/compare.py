"""From the answers of several systems on the same items to scores, intervals and tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from manytune.errors import DataError
from manytune.evaluation.metrics import Metric
from manytune.evaluation.metrics.base import Floats
from manytune.evaluation.results import (
    Answer,
    Comparison,
    Cost,
    Curves,
    Evaluation,
    GainShare,
    Inference,
    Item,
    RunResult,
    ScoreWithInterval,
    Verdict,
)
from manytune.evaluation.significance import (
    LEVEL,
    RESAMPLES,
    bootstrap_interval,
    cluster_sums,
    gain_share,
    holm,
    paired_interval,
    paired_test,
    verdict,
)


@dataclass(frozen=True, slots=True)
class System:
    """A system that has answered: everything of a `RunResult` but its scores, with the same meanings.

    Attributes:
        other_seeds: The answers of the same system after training with other seeds, one tuple a seed.
    """

    name: str
    method: str
    answers: tuple[Answer, ...]
    cost: Cost = field(default_factory=Cost)
    curves: Curves = field(default_factory=Curves)
    provenance: Mapping[str, str] = field(default_factory=dict)
    other_seeds: tuple[tuple[Answer, ...], ...] = ()
    seeds: tuple[int, ...] = ()


def evaluate(
    items: Sequence[Item],
    systems: Sequence[System],
    metrics: Sequence[Metric],
    *,
    primary: str | None = None,
    reference: str | None = None,
    all_pairs: bool = False,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
    provenance: Mapping[str, str] | None = None,
) -> Evaluation:
    """Score every system and compare it with the first one, or all of them with each other.

    All intervals and tests resample the same clusters: the items' groups, and items without one. Every
    metric and pair has its own test; the p-values of a metric are corrected for the number of its tests
    (`holm`). The verdict rests on one metric, `primary`, that is named beforehand. Items of several tasks are
    also scored task by task; the tests are on all of them together.

    A system that was trained with several seeds is scored by the mean over them. Its intervals and tests are
    about the choice of items, with these very seeds; how far the seeds are apart is shown beside them.

    Args:
        items: What was asked.
        systems: Who answered; the first is the baseline.
        metrics: How to score.
        primary: Name of the metric that decides; by default the first.
        reference: Name of the system whose gain over the baseline counts as 1; `None` computes no shares.
        all_pairs: Whether every pair of systems is compared, and not only each with the baseline.
        level: Confidence level of the intervals.
        resamples: Bootstrap samples, and randomizations of a test.
        seed: Of both.
        provenance: Facts needed to make the evaluation again.

    Raises:
        DataError: There are no items, a system's answers don't match them, two systems share a name, the number of
            seeds differs, or a metric lacks what it needs.
    """
    _check(items, systems, metrics, primary)
    references = [item.references for item in items]
    groups = [item.group for item in items]
    alone = sum(group is None for group in groups)
    clusters_in_all = alone + len({group for group in groups if group is not None})
    inference = Inference(level, resamples, seed, clusters_in_all)
    tasks = _tasks(items)
    scores: dict[str, list[ScoreWithInterval]] = {system.name: [] for system in systems}
    task_scores: dict[str, dict[str, list[ScoreWithInterval]]] = {system.name: {} for system in systems}
    comparisons: list[Comparison] = []
    shares: list[GainShare] = []
    seeds = max(1 + len(system.other_seeds) for system in systems)
    for plain in metrics:
        signature = plain.signature(references)
        metric = _Scored(plain, signature, seeds, inference)
        statistics = [metric.statistics(system, references) for system in systems]
        clusters = [cluster_sums(of_items, groups) for of_items in statistics]
        for system, of_items, sums in zip(systems, statistics, clusters, strict=True):
            scores[system.name].append(metric.score(system, sums))
            for task, places in tasks.items():
                own = cluster_sums(of_items[places], [groups[place] for place in places])
                task_scores[system.name].setdefault(task, []).append(metric.score(system, own))
        named = dict(zip((system.name for system in systems), clusters, strict=True))
        comparisons += metric.comparisons(named, all_pairs=all_pairs)
        if reference is not None:
            shares += metric.shares(named, reference, comparisons)
    return Evaluation(
        items=tuple(items),
        results=tuple(_result(system, scores[system.name], task_scores[system.name]) for system in systems),
        comparisons=tuple(comparisons),
        inference=inference,
        primary=primary or metrics[0].name,
        provenance=dict(provenance or {}),
        shares=tuple(shares),
    )


def part(evaluation: Evaluation, system: str) -> Evaluation:
    """The baseline and one other system of an evaluation."""
    return dataclasses.replace(
        evaluation,
        results=(evaluation.results[0], evaluation.result(system)),
        comparisons=tuple(found for found in evaluation.comparisons if found.system == system),
    )


@dataclass(frozen=True, slots=True)
class _Scored:
    """One metric over the seeds: rows hold the statistics of every seed, and the score is the mean of theirs."""

    metric: Metric
    signature: str
    seeds: int
    inference: Inference

    def statistics(self, system: System, references: Sequence[Sequence[str]]) -> Floats:
        """Rows of all seeds side by side, `[items, seeds * k]`; a system without seeds repeats its own."""
        own = [self.metric.statistics(said, references) for said in (system.answers, *system.other_seeds)]
        return np.hstack(own * (self.seeds // len(own)))

    def aggregate(self, sums: Floats) -> Floats:
        """The mean of the seeds' scores."""
        result: Floats = self.of_seeds(sums).mean(axis=-1)
        return result

    def of_seeds(self, sums: Floats) -> Floats:
        """Each seed's score, `[..., seeds]`."""
        return self.metric.aggregate(sums.reshape(*sums.shape[:-1], self.seeds, -1))

    def score(self, system: System, clusters: Floats) -> ScoreWithInterval:
        total = clusters.sum(axis=0)
        interval = bootstrap_interval(
            self.aggregate, clusters, bounds=self.metric.bounds, **self._resampling()
        )
        return ScoreWithInterval(
            metric=self.metric.name,
            value=float(self.aggregate(total)),
            low=interval.low if interval else None,
            high=interval.high if interval else None,
            signature=self.signature,
            seeds=tuple(map(float, self.of_seeds(total))) if system.other_seeds else (),
        )

    def comparisons(self, clusters: Mapping[str, Floats], *, all_pairs: bool) -> list[Comparison]:
        """Every system with the first one, then perhaps the other pairs; p-values corrected for all of them."""
        names = list(clusters)
        pairs = [(name, names[0]) for name in names[1:]]
        if all_pairs:
            pairs += [(other, one) for place, one in enumerate(names[1:], 2) for other in names[place:]]
        found = [self._comparison(clusters, system, baseline) for system, baseline in pairs]
        adjusted = holm([one.p_value for one in found])
        return [
            dataclasses.replace(one, p_adjusted=p, verdict=self._verdict(one.difference, p))
            for one, p in zip(found, adjusted, strict=True)
        ]

    def shares(
        self, clusters: Mapping[str, Floats], reference: str, comparisons: Sequence[Comparison]
    ) -> list[GainShare]:
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
                    **self._resampling(),
                )
            ends = (interval.low, interval.high) if interval else (None, None)
            found.append(GainShare(name, reference, self.metric.name, share, *ends))
        return found

    def _comparison(self, clusters: Mapping[str, Floats], system: str, baseline: str) -> Comparison:
        pair = (self.aggregate, clusters[baseline], clusters[system])
        interval = paired_interval(*pair, bounds=self.metric.bounds, **self._resampling())
        p_value = paired_test(*pair, resamples=self.inference.resamples, seed=self.inference.seed)
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
        return verdict(difference, p_value, higher_is_better=better, level=self.inference.level)

    def _resampling(self) -> dict[str, Any]:
        return {
            "level": self.inference.level,
            "resamples": self.inference.resamples,
            "seed": self.inference.seed,
        }


def _tasks(items: Sequence[Item]) -> dict[str, list[int]]:
    """The places of each task's items; empty unless there are several tasks."""
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        if item.task is not None:
            places.setdefault(item.task, []).append(place)
    return places if len(places) > 1 else {}


def _result(
    system: System,
    scores: Sequence[ScoreWithInterval],
    task_scores: Mapping[str, Sequence[ScoreWithInterval]],
) -> RunResult:
    return RunResult(
        name=system.name,
        method=system.method,
        answers=system.answers,
        scores=tuple(scores),
        cost=system.cost,
        curves=system.curves,
        provenance=system.provenance,
        task_scores={task: tuple(found) for task, found in task_scores.items()},
        seeds=system.seeds,
    )


def _check(
    items: Sequence[Item], systems: Sequence[System], metrics: Sequence[Metric], primary: str | None
) -> None:
    if not items or not systems or not metrics:
        raise DataError(
            "an evaluation needs at least one item, one system and one metric; "
            f"found {len(items)}, {len(systems)} and {len(metrics)}"
        )
    names = [system.name for system in systems]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"two systems are called '{name}'; give each its own name")
    seeds = max((1 + len(system.other_seeds) for system in systems), default=1)
    for system in systems:
        for said in (system.answers, *system.other_seeds):
            if len(said) != len(items):
                raise DataError(f"'{system.name}' has {len(said)} answers to {len(items)} items")
        if len(system.other_seeds) not in (0, seeds - 1):
            raise DataError(
                f"'{system.name}' was trained with {1 + len(system.other_seeds)} seeds and another system with "
                f"{seeds}; train all with the same seeds"
            )
    if primary is not None and primary not in [metric.name for metric in metrics]:
        listed = ", ".join(metric.name for metric in metrics)
        raise DataError(f"the primary metric '{primary}' isn't among those computed: {listed}")
