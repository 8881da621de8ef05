"""The report: one HTML page that needs nothing else, no network, no scripts, no fonts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2
import numpy as np

from manytune.evaluation.metrics import METRICS, Metric
from manytune.evaluation.report.charts import loss_chart, whisker_chart
from manytune.evaluation.results import Answer, Cost, Evaluation
from manytune.evaluation.wording import (
    MARKS,
    basis_sentence,
    claim,
    count,
    cut_sentence,
    difference_interval,
    evidence,
    interval,
    p_value,
    score,
    seconds,
    share,
    signed,
    size,
)
from manytune.store.files import atomic_write

DOCUMENTS = 12
"""How many documents the page shows."""


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
        names=[result.name for result in evaluation.results],
        score_rows=[_score_row(evaluation, metric) for metric in metrics],
        comparison_rows=[_comparison_row(evaluation, metric) for metric in metrics],
        cost_rows=_cost_rows([result.cost for result in evaluation.results]),
        documents=_documents(evaluation),
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


@dataclass(frozen=True, slots=True)
class _DocumentAnswer:
    system: int
    name: str
    text: str
    score: str
    cut: bool


@dataclass(frozen=True, slots=True)
class _Document:
    where: str
    task: str | None
    prompt: str
    references: tuple[str, ...]
    answers: tuple[_DocumentAnswer, ...]
    change: str


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
                p_value(found.p_value),
                found.verdict,
            )
        )
    return _Row(metric.label, "", cells)


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


def _documents(evaluation: Evaluation) -> list[_Document]:
    """Documents from the largest gain to the largest loss of the last system, evenly spaced in that ranking.

    Picked by rule and not by taste: the page shows where the system failed as surely as where it shone.
    """
    metric = METRICS[evaluation.primary]
    references = [item.references for item in evaluation.items]
    by_system = [
        metric.aggregate(metric.statistics(result.answers, references)) for result in evaluation.results
    ]
    change = by_system[-1] - by_system[0]
    if not metric.higher_is_better:
        change = -change
    ranking = np.argsort(-change, kind="stable")
    chosen = np.unique(np.linspace(0, len(ranking) - 1, min(DOCUMENTS, len(ranking))).round().astype(int))
    documents = []
    for place in ranking[chosen]:
        item = evaluation.items[place]
        answers = tuple(
            _document_answer(number, result.name, result.answers[place], score(float(scores[place]), metric))
            for number, (result, scores) in enumerate(zip(evaluation.results, by_system, strict=True))
        )
        difference = float(by_system[-1][place] - by_system[0][place])
        documents.append(
            _Document(
                f"{item.source}:{item.row}",
                item.task,
                item.prompt,
                item.references,
                answers,
                signed(difference, metric) if len(evaluation.results) > 1 else "",
            )
        )
    return documents


def _document_answer(system: int, name: str, answer: Answer, found: str) -> _DocumentAnswer:
    return _DocumentAnswer(system, name, answer.text.strip(), found, cut=answer.finished == "length")


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
