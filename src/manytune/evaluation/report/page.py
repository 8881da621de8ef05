"""The report: one HTML page that needs nothing else: no network, no fonts; its few lines of script only filter."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from manytune.atomic import atomic_write
from manytune.evaluation.learning_curve import curve_sentence
from manytune.evaluation.metrics import METRICS, NUMBER_METRICS
from manytune.evaluation.report import class_tables, tables
from manytune.evaluation.report.charts import loss_chart, score_charts, whisker_chart
from manytune.evaluation.report.contents import contents
from manytune.evaluation.report.documents import EXAMPLES, documents, featured
from manytune.evaluation.report.gains import change_charts, gain_charts, rank_chart
from manytune.evaluation.report.setup import setup
from manytune.evaluation.results import Evaluation
from manytune.evaluation.wording import (
    MARKS,
    basis_sentence,
    between_systems,
    blunt_sentence,
    correction_sentence,
    cut_sentence,
    findings,
    forgotten_sentence,
    main_sentences,
    mixed_sentence,
    seeds_sentence,
)

_MOST_ANSWERS = 5  # next to each other under one prompt


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
    shown = featured(evaluation)
    parts: dict[str, Any] = {
        "setup": setup(evaluation),
        "losses": loss_chart(evaluation),
        "courses": score_charts(evaluation),
        "gains": gain_charts(evaluation),
        "ranks": rank_chart(evaluation),
        "changes": change_charts(evaluation),
        "share_table": tables.share_table(evaluation),
        "cost_table": tables.cost_table(evaluation),
        "mcnemar": class_tables.mcnemar_table(evaluation),
        "confusions": class_tables.confusion_tables(evaluation),
    }
    return _template().render(
        **parts,
        contents=contents(parts),
        examples=EXAMPLES,
        title=title,
        evaluation=evaluation,
        primary=METRICS[evaluation.primary],
        findings=findings(evaluation),
        basis=basis_sentence(evaluation),
        cut=cut_sentence(evaluation),
        whiskers=whisker_chart(evaluation),
        rank_table=tables.rank_table(evaluation),
        score_table=tables.score_table(evaluation),
        difference_table=tables.difference_table(evaluation),
        task_table=tables.task_table(evaluation),
        mixed=mixed_sentence(evaluation),
        curves=[curve_sentence(curve) for curve in evaluation.sweep.curves] if evaluation.sweep else [],
        leads=main_sentences(evaluation),
        forgotten=forgotten_sentence(evaluation),
        pairs=between_systems(evaluation),
        notes=[one(evaluation) for one in (seeds_sentence, correction_sentence, blunt_sentence)],
        tasks=sorted({item.task for item in evaluation.items if item.task is not None}),
        names=[result.name for result in evaluation.results],
        documents=documents(evaluation),
        featured=shown,
        ticked=_ticked(evaluation, shown),
        signatures=[(METRICS[found.metric].label, found.signature) for found in evaluation.results[0].scores],
        marks=MARKS,
        numbers=evaluation.primary in NUMBER_METRICS,
    )


def _ticked(evaluation: Evaluation, shown: int) -> set[int]:
    """Whose answers are shown at first: everybody's, or of many systems the few that matter most."""
    numbers = {result.name: number for number, result in enumerate(evaluation.results)}
    if len(numbers) <= _MOST_ANSWERS:
        return set(numbers.values())
    references = {numbers[found.reference] for found in evaluation.shares}
    return {0, shown, *references}


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
