"""The report as Markdown: verdicts, scores, shares of the gain, ranks, forgetting, cost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from manytune.evaluation.learning_curve import curve_sentence
from manytune.evaluation.metrics import METRICS
from manytune.evaluation.report import class_tables, tables
from manytune.evaluation.report.tables import Cell, Table
from manytune.evaluation.results import Evaluation
from manytune.evaluation.wording import (
    MARKS,
    asked_sentence,
    basis_sentence,
    between_systems,
    blunt_sentence,
    correction_sentence,
    findings,
    forgotten_sentence,
    main_sentences,
    mixed_sentence,
    seeds_sentence,
)

_FEW = 3  # systems as columns where a line has little room


def render_markdown(evaluation: Evaluation, *, title: str) -> str:
    """The whole report as text that reads well unrendered, too."""
    provenance = evaluation.provenance
    files = [key for key, value in provenance.items() if "\n" in value]  # a recipe is shown verbatim
    sentences = (*main_sentences(evaluation), forgotten_sentence(evaluation), basis_sentence(evaluation))
    asked = [f"- {probe.name}: {_text(asked_sentence(probe))}" for probe in evaluation.forgetting] + [""]
    parts = [
        f"# {title}",
        "",
        *(f"- **{_text(found.claim)}**: {_text(found.evidence)}" for found in findings(evaluation)),
        "",
        *(sentence for sentence in sentences if sentence),
        "",
        *_scores(evaluation),
        *_section(f"Share of {_reference(evaluation)}'s gain", tables.share_table(evaluation)),
        *_ranks(evaluation),
        *_section("What was forgotten", tables.forgetting_table(evaluation, most_across=_FEW), *asked),
        *_section(f"{METRICS[evaluation.primary].label} by task", tables.task_table(evaluation)),
        *_section("McNemar's exact tests", class_tables.mcnemar_table(evaluation)),
        *(line for one in class_tables.confusion_tables(evaluation) for line in _section(one.label, one)),
        *_section("Quality and cost", tables.cost_table(evaluation, most_across=_FEW)),
        *([mixed, ""] if (mixed := mixed_sentence(evaluation)) else []),
        "## How this was made",
        "",
        *(f"- {_text(key)}: {_text(value)}" for key, value in provenance.items() if key not in files),
        *(f"- {METRICS[one.metric].label}: `{one.signature}`" for one in evaluation.results[0].scores),
        "",
        *(line for key in files for line in (f"{_text(key)}:", "", *_code(provenance[key]), "")),
    ]
    return "\n".join(map(_inert, parts))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; numbers are right-aligned."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return [f"| {' | '.join(map(_text, line))} |" for line in lines] + [""]


def text_table(found: Table) -> list[str]:
    """A table as Markdown: remarks in brackets, and a sign for what the test says."""
    heads = [
        "" if found.corner in ("Metric", "System") else found.corner,
        *(one.text for one in found.columns),
    ]
    rows = [[row.text, *map(_cell, cells)] for row, cells in found.rows]
    return table(heads, rows)


def _cell(cell: Cell) -> str:
    notes = f" ({', '.join(cell.notes)})" if cell.notes else ""
    return f"{cell.text}{notes}" + (f" {MARKS[cell.verdict]}" if cell.verdict else "")


def _scores(evaluation: Evaluation) -> list[str]:
    signs = ", ".join(f"{mark} {word}" for word, mark in MARKS.items())
    level = f"{evaluation.inference.level:.0%}"
    note = f"In brackets {level} intervals over prompts. Against {evaluation.results[0].name}: {signs}."
    pairs = [f"- {sentence}" for sentence in between_systems(evaluation)]
    sentences = [
        note,
        correction_sentence(evaluation),
        blunt_sentence(evaluation),
        seeds_sentence(evaluation),
    ]
    text = " ".join(found for found in sentences if found)
    scores = text_table(tables.score_table(evaluation))
    return ["## Scores", "", *scores, text, "", *pairs, *([""] if pairs else [])]


def _section(title: str, found: Table | None, *notes: str) -> list[str]:
    """A table under a heading; nothing if there is no table."""
    return [] if found is None else [f"## {title}", "", *text_table(found), *notes]


def _ranks(evaluation: Evaluation) -> list[str]:
    sweep, found = evaluation.sweep, tables.rank_table(evaluation)
    if sweep is None or found is None:
        return []
    curves = [f"- {_text(curve_sentence(curve))}" for curve in sweep.curves]
    curves += [""] if curves else []
    return [
        "## Ranks",
        "",
        f"**{sweep.recommended}** is enough. {sweep.reason}",
        "",
        *text_table(found),
        *curves,
    ]


def _reference(evaluation: Evaluation) -> str:
    return evaluation.shares[0].reference if evaluation.shares else ""


def _code(text: str) -> list[str]:
    """A block of text, verbatim."""
    return [f"    {line}" for line in text.rstrip().splitlines()]


def _inert(line: str) -> str:
    """A line in which text of others makes no HTML and no link; code is shown as it is anyway."""
    if line.startswith("    "):
        return line
    return re.sub(r"\](?=\()", r"]\\", re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line))


def _text(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
