"""The report: one HTML page that needs nothing else: no network, no fonts; its few lines of script only filter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2

from manytune.evaluation.metrics import METRICS, Metric
from manytune.evaluation.report.charts import loss_chart, whisker_chart
from manytune.evaluation.report.documents import documents
from manytune.evaluation.report.gains import change_charts, gain_charts, rank_chart
from manytune.evaluation.results import Cost, Evaluation
from manytune.evaluation.wording import (
    MARKS,
    basis_sentence,
    between_systems,
    claim,
    correction_sentence,
    count,
    cut_sentence,
    difference_interval,
    evidence,
    forgotten_sentence,
    interval,
    p_value,
    score,
    seconds,
    seeds_sentence,
    share,
    share_sentence,
    share_text,
    signed,
    size,
)
from manytune.store.files import atomic_write


def write_report(evaluation: Evaluation, path: Path, *, title: str) -> None:
    """Write the page, whole or not at all.

    Args:
        evaluation: What was found.
        path: The `.html` file; its directory must exist.
        title: The page's heading.
    """
    atomic_write(path, render_report(evaluation, title=title))


def render_report(evaluation: Evaluation, *, title: str) -> str:
    """The page as text. Everything that users or models wrote is escaped."""
    metrics = [METRICS[found.metric] for found in evaluation.results[0].scores]
    return _template().render(
        title=title,
        evaluation=evaluation,
        primary=METRICS[evaluation.primary],
        verdicts=_verdicts(evaluation),
        basis=basis_sentence(evaluation),
        cut=cut_sentence(evaluation),
        whiskers=whisker_chart(evaluation),
        losses=loss_chart(evaluation),
        gains=gain_charts(evaluation),
        ranks=rank_chart(evaluation),
        rank_rows=_rank_rows(evaluation),
        changes=change_charts(evaluation),
        share_rows=_share_rows(evaluation),
        task_rows=_task_rows(evaluation),
        shared_gain=share_sentence(evaluation),
        forgotten=forgotten_sentence(evaluation),
        pairs=between_systems(evaluation),
        notes=[one for one in (seeds_sentence(evaluation), correction_sentence(evaluation)) if one],
        tasks=sorted({item.task for item in evaluation.items if item.task is not None}),
        names=[result.name for result in evaluation.results],
        score_rows=[_score_row(evaluation, metric) for metric in metrics],
        comparison_rows=[_comparison_row(evaluation, metric) for metric in metrics],
        cost_rows=_cost_rows([result.cost for result in evaluation.results]),
        documents=documents(evaluation),
        signatures=[(METRICS[found.metric].label, found.signature) for found in evaluation.results[0].scores],
        marks=MARKS,
    )


@dataclass(frozen=True, slots=True)
class _Verdict:
    verdict: str
    mark: str
    claim: str
    evidence: str


@dataclass(frozen=True, slots=True)
class _ScoreCell:
    value: str
    interval: str
    verdict: str | None


@dataclass(frozen=True, slots=True)
class _ComparisonCell:
    system: str
    difference: str
    interval: str
    p_value: str
    verdict: str


@dataclass(frozen=True, slots=True)
class _Row:
    label: str
    note: str
    cells: Sequence[object]


def _verdicts(evaluation: Evaluation) -> list[_Verdict]:
    found = []
    for result in evaluation.results[1:]:
        comparison = evaluation.comparison(result.name, evaluation.primary)
        word = comparison.verdict
        found.append(_Verdict(word, MARKS[word], claim(comparison), evidence(evaluation, comparison)))
    return found


def _score_row(evaluation: Evaluation, metric: Metric) -> _Row:
    cells = []
    for place, result in enumerate(evaluation.results):
        found = result.score(metric.name)
        word = evaluation.comparison(result.name, metric.name).verdict if place else None
        cells.append(_ScoreCell(score(found.value, metric), interval(found, metric), word))
    return _Row(metric.label, "" if metric.higher_is_better else "lower is better", cells)


def _comparison_row(evaluation: Evaluation, metric: Metric) -> _Row:
    cells = []
    for result in evaluation.results[1:]:
        found = evaluation.comparison(result.name, metric.name)
        cells.append(
            _ComparisonCell(
                result.name,
                signed(found.difference, metric),
                difference_interval(found, metric),
                p_value(found.p_adjusted),
                found.verdict,
            )
        )
    return _Row(metric.label, "", cells)


def _share_rows(evaluation: Evaluation) -> list[_Row]:
    """Every system's share of the reference's gain, by every metric; empty if shares weren't computed."""
    if not evaluation.shares:
        return []
    rows = []
    for found in evaluation.results[0].scores:
        shares = [evaluation.share(result.name, found.metric) for result in evaluation.results[1:]]
        cells = [share_text(one) if one is not None else count(None) for one in shares]
        rows.append(_Row(METRICS[found.metric].label, "", cells))
    return rows


def _task_rows(evaluation: Evaluation) -> list[_Row]:
    """The deciding metric task by task; empty for a single task."""
    metric = METRICS[evaluation.primary]
    rows = []
    for task in evaluation.results[0].task_scores:
        cells = []
        for result in evaluation.results:
            found = next(one for one in result.task_scores[task] if one.metric == metric.name)
            cells.append((score(found.value, metric), interval(found, metric)))
        rows.append(_Row(task, "", cells))
    return rows


def _rank_rows(evaluation: Evaluation) -> list[_Row]:
    """One row a rank; empty without a sweep."""
    if evaluation.sweep is None:
        return []
    metric = METRICS[evaluation.primary]
    return [
        _Row(
            point.system,
            "recommended" if point.system == evaluation.sweep.recommended else "",
            [
                (count(point.trainable_params), ""),
                (f"{point.validation_loss:.3f}", "best" if point.p_value is None else p_value(point.p_value)),
                (score(evaluation.result(point.system).score(metric.name).value, metric), ""),
                (
                    (f"{point.spectrum.effective_rank:.1f}", f"90% in {point.spectrum.directions:.1f}")
                    if point.spectrum
                    else (count(None), "")
                ),
                (seconds(point.seconds), ""),
            ],
        )
        for point in evaluation.sweep.points
    ]


def _cost_rows(costs: Sequence[Cost]) -> list[_Row]:
    """What was measured for at least one system."""
    speeds = [None if cost.tokens_per_second is None else round(cost.tokens_per_second) for cost in costs]
    rows = [
        (
            "Trained parameters",
            [
                (count(cost.trainable_params), share(cost.trainable_params, cost.total_params))
                for cost in costs
            ],
        ),
        ("Training time", [(seconds(cost.seconds), "") for cost in costs]),
        ("Peak memory", [(size(cost.peak_memory_bytes), "") for cost in costs]),
        ("On disk, beside the base", [(size(cost.adapter_bytes), "") for cost in costs]),
        ("Training tokens per second", [(count(speed), "") for speed in speeds]),
    ]
    nothing = count(None)
    return [_Row(label, "", cells) for label, cells in rows if any(text != nothing for text, _ in cells)]


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("manytune.evaluation.report", package_path=""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")
