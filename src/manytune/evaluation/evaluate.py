"""From the answers of several systems to the same items, to scores, intervals and tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from manytune.errors import DataError
from manytune.evaluation.equivalence import Equivalence, Margin
from manytune.evaluation.metric_over_seeds import MetricOverSeeds
from manytune.evaluation.metrics import Metric
from manytune.evaluation.resampling import DEFAULT, Resampling
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
)
from manytune.evaluation.significance import cluster_sums


@dataclass(frozen=True, slots=True)
class System:
    """A system that has answered: a `RunResult` without scores; the fields mean the same.

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
    margin: Margin | None = None,
    all_pairs: bool = False,
    resampling: Resampling = DEFAULT,
    provenance: Mapping[str, str] | None = None,
) -> Evaluation:
    """Score every system and compare it with the first one, or all of them with each other.

    All intervals and tests resample the same clusters: the items' groups, and items without one. Every
    metric and pair has its own test; the p-values of a metric are corrected for the number of its tests
    (`holm`). One metric decides the verdict, `primary`, which is named beforehand. Items of several tasks are
    also scored task by task; the tests are on all of them together.

    A system that was trained with several seeds is scored by the mean over them. Its intervals and tests are
    about the choice of items, for these seeds; the spread of the seeds' scores is reported separately.

    Args:
        items: What was asked.
        systems: Who answered; the first is the baseline.
        metrics: How to score.
        primary: Name of the metric that decides; by default the first.
        reference: Name of the system whose gain over the baseline counts as 1; `None` computes no shares.
        margin: What the systems may be equivalent to, and how near that is; `None` tests no equivalence.
        all_pairs: Whether every pair of systems is compared, and not only each with the baseline.
        resampling: Confidence level, bootstrap samples, and randomizations of a test.
        provenance: Facts needed to make the evaluation again.

    Raises:
        DataError: There are no items, a system's answers don't match them, two systems share a name, the number of
            seeds differs, or a metric lacks what it needs.
    """
    _check(items, systems, metrics, primary)
    if margin is not None and margin.reference not in [system.name for system in systems]:
        listed = ", ".join(system.name for system in systems)
        raise DataError(f"the reference '{margin.reference}' isn't among the systems: {listed}")
    references = [item.references for item in items]
    groups = [item.group for item in items]
    inference = Inference(
        level=resampling.level,
        resamples=resampling.resamples,
        seed=resampling.seed,
        clusters=_number_of_clusters(groups),
    )
    tasks = _tasks(items)
    scores: dict[str, list[ScoreWithInterval]] = {system.name: [] for system in systems}
    task_scores: dict[str, dict[str, list[ScoreWithInterval]]] = {system.name: {} for system in systems}
    comparisons: list[Comparison] = []
    shares: list[GainShare] = []
    equivalences: list[Equivalence] = []
    seeds = max(1 + len(system.other_seeds) for system in systems)
    for plain in metrics:
        metric = MetricOverSeeds(plain, plain.signature(references), seeds, resampling)
        clusters = {}
        for system in systems:
            name, trained_again = system.name, bool(system.other_seeds)
            of_items = metric.statistics((system.answers, *system.other_seeds), references)
            clusters[name] = cluster_sums(of_items, groups)
            scores[name].append(metric.score(clusters[name], each_seed=trained_again))
            for task, places in tasks.items():
                of_task = cluster_sums(of_items[places], [groups[place] for place in places])
                task_scores[name].setdefault(task, []).append(metric.score(of_task, each_seed=trained_again))
        comparisons += metric.comparisons(clusters, all_pairs=all_pairs)
        if reference is not None:
            shares += metric.shares(clusters, reference, comparisons)
        if margin is not None:
            equivalences += metric.equivalences(clusters, margin, prompts=len(items))
    return Evaluation(
        items=tuple(items),
        results=tuple(_result(system, scores[system.name], task_scores[system.name]) for system in systems),
        comparisons=tuple(comparisons),
        inference=inference,
        primary=primary or metrics[0].name,
        provenance=dict(provenance or {}),
        shares=tuple(shares),
        equivalences=tuple(equivalences),
    )


def part(evaluation: Evaluation, system: str) -> Evaluation:
    """The baseline and one other system of an evaluation."""
    return dataclasses.replace(
        evaluation,
        results=(evaluation.results[0], evaluation.result(system)),
        comparisons=tuple(
            found
            for found in evaluation.comparisons
            if (found.system, found.baseline) == (system, evaluation.results[0].name)
        ),
        equivalences=tuple(found for found in evaluation.equivalences if found.system == system),
    )


def _tasks(items: Sequence[Item]) -> dict[str, list[int]]:
    """The positions of each task's items; empty unless there are several tasks."""
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


def _number_of_clusters(groups: Sequence[str | None]) -> int:
    """Groups, and items without one."""
    alone = sum(group is None for group in groups)
    return alone + len({group for group in groups if group is not None})


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
