"""From the answers of several systems on the same items to scores, intervals and tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from manytune.errors import DataError
from manytune.evaluation.metrics import Metric
from manytune.evaluation.metrics.base import Floats
from manytune.evaluation.results import (
    Answer,
    Comparison,
    Cost,
    Curves,
    Evaluation,
    Inference,
    Item,
    RunResult,
    ScoreWithInterval,
)
from manytune.evaluation.significance import (
    LEVEL,
    RESAMPLES,
    bootstrap_interval,
    cluster_sums,
    paired_interval,
    paired_test,
    verdict,
)


@dataclass(frozen=True, slots=True)
class System:
    """A system that has answered: everything of a `RunResult` but its scores, with the same meanings."""

    name: str
    method: str
    answers: tuple[Answer, ...]
    cost: Cost = field(default_factory=Cost)
    curves: Curves = field(default_factory=Curves)
    provenance: Mapping[str, str] = field(default_factory=dict)


def evaluate(
    items: Sequence[Item],
    systems: Sequence[System],
    metrics: Sequence[Metric],
    *,
    primary: str | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
    provenance: Mapping[str, str] | None = None,
) -> Evaluation:
    """Score every system and compare each with the first one.

    All intervals and tests resample the same clusters: the items' groups, and items without one. Every
    metric and system has its own test, and no p-value is corrected for their number: the verdict rests on
    one metric, `primary`, that is named beforehand. Items of several tasks are also scored task by task;
    the tests are on all of them together.

    Args:
        items: What was asked.
        systems: Who answered; the first is the baseline.
        metrics: How to score.
        primary: Name of the metric that decides; by default the first.
        level: Confidence level of the intervals.
        resamples: Bootstrap samples, and randomizations of a test.
        seed: Of both.
        provenance: Facts needed to make the evaluation again.

    Raises:
        DataError: There are no items, a system's answers don't match them, two systems share a name, or a
            metric lacks what it needs.
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
    comparisons = []
    for metric in metrics:
        signature = metric.signature(references)
        statistics = [metric.statistics(system.answers, references) for system in systems]
        clusters = [cluster_sums(of_items, groups) for of_items in statistics]
        for system, of_items, sums in zip(systems, statistics, clusters, strict=True):
            scores[system.name].append(_score(metric, signature, sums, inference))
            for task, places in tasks.items():
                own = cluster_sums(of_items[places], [groups[place] for place in places])
                found = task_scores[system.name].setdefault(task, [])
                found.append(_score(metric, signature, own, inference))
        for system, sums in zip(systems[1:], clusters[1:], strict=True):
            names = {"system": system.name, "baseline": systems[0].name}
            comparisons.append(_comparison(metric, clusters[0], sums, inference, **names))
    return Evaluation(
        items=tuple(items),
        results=tuple(_result(system, scores[system.name], task_scores[system.name]) for system in systems),
        comparisons=tuple(comparisons),
        inference=inference,
        primary=primary or metrics[0].name,
        provenance=dict(provenance or {}),
    )


def part(evaluation: Evaluation, system: str) -> Evaluation:
    """The baseline and one other system of an evaluation."""
    return dataclasses.replace(
        evaluation,
        results=(evaluation.results[0], evaluation.result(system)),
        comparisons=tuple(found for found in evaluation.comparisons if found.system == system),
    )


def _score(metric: Metric, signature: str, clusters: Floats, inference: Inference) -> ScoreWithInterval:
    interval = bootstrap_interval(
        metric.aggregate,
        clusters,
        bounds=metric.bounds,
        level=inference.level,
        resamples=inference.resamples,
        seed=inference.seed,
    )
    return ScoreWithInterval(
        metric=metric.name,
        value=float(metric.aggregate(clusters.sum(axis=0))),
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        signature=signature,
    )


def _comparison(
    metric: Metric,
    baseline_clusters: Floats,
    clusters: Floats,
    inference: Inference,
    *,
    system: str,
    baseline: str,
) -> Comparison:
    pair = (metric.aggregate, baseline_clusters, clusters)
    interval = paired_interval(
        *pair,
        bounds=metric.bounds,
        level=inference.level,
        resamples=inference.resamples,
        seed=inference.seed,
    )
    p_value = paired_test(*pair, resamples=inference.resamples, seed=inference.seed)
    scores = [float(metric.aggregate(sums.sum(axis=0))) for sums in (baseline_clusters, clusters)]
    difference = scores[1] - scores[0]
    return Comparison(
        system=system,
        baseline=baseline,
        metric=metric.name,
        difference=difference,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        p_value=p_value,
        verdict=verdict(difference, p_value, higher_is_better=metric.higher_is_better, level=inference.level),
    )


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
    for system in systems:
        if len(system.answers) != len(items):
            raise DataError(f"'{system.name}' has {len(system.answers)} answers to {len(items)} items")
    if primary is not None and primary not in [metric.name for metric in metrics]:
        listed = ", ".join(metric.name for metric in metrics)
        raise DataError(f"the primary metric '{primary}' isn't among those computed: {listed}")
