"""How commands print an evaluation, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from manytune.cli.outputs.experiment import print_gains
from manytune.evaluation.classes import confusions, mcnemar_tests
from manytune.evaluation.metrics import METRICS
from manytune.evaluation.results import Evaluation, Probe, RunResult
from manytune.evaluation.wording import (
    MARKS,
    basis_sentence,
    blunt_sentence,
    correction_sentence,
    cut_sentence,
    evidence,
    interval,
    main_sentences,
    p_value,
    score,
    seeds_sentence,
    verdict_of,
)

_COLOURS = {"better": "green", "worse": "red", "cannot tell": "yellow"}
_ADAPTERS_TO_A_TABLE = 2  # next to the base, so that it fits into 60 columns


def summary(evaluation: Evaluation, written: Sequence[Path]) -> dict[str, Any]:
    """Everything but the prompts, the answers and the curves."""
    return {
        "items": len(evaluation.items),
        "primary": evaluation.primary,
        "inference": asdict(evaluation.inference),
        "results": [_result(result) for result in evaluation.results],
        "comparisons": [asdict(found) for found in evaluation.comparisons],
        "equivalences": [asdict(found) for found in evaluation.equivalences],
        "answering": [asdict(found) for found in evaluation.answering],
        "budget": asdict(evaluation.budget) if evaluation.budget else None,
        "shares": [asdict(found) for found in evaluation.shares],
        "forgetting": [_probe(probe) for probe in evaluation.forgetting],
        "mcnemar": [asdict(found) for found in mcnemar_tests(evaluation)],
        "confusion": [asdict(found) for found in confusions(evaluation)],
        "sweep": asdict(evaluation.sweep) if evaluation.sweep else None,
        "provenance": dict(evaluation.provenance),
        "written": [str(path) for path in written],
    }


def print_evaluation(evaluation: Evaluation, written: Sequence[Path]) -> None:
    """Print the table, the verdicts in sentences, and where the rest is."""
    console = Console(highlight=False)
    baseline, *others = evaluation.results
    for start in range(0, max(len(others), 1), _ADAPTERS_TO_A_TABLE):
        console.print(_table(evaluation, [baseline, *others[start : start + _ADAPTERS_TO_A_TABLE]]))
    if baseline.task_scores:
        console.print()
        console.print(_by_task(evaluation))
    console.print(Text(" ".join(_notes(evaluation)), "dim"))
    console.print()
    for result in others:
        found = evaluation.comparison(result.name, evaluation.primary)
        sentence = Text.assemble(
            (f"{MARKS[found.verdict]} {verdict_of(evaluation, found)}", f"bold {_COLOURS[found.verdict]}"),
            f": {evidence(evaluation, found)}",
        )
        console.print(sentence)
    for test in mcnemar_tests(evaluation):
        console.print(
            Text(
                f"McNemar's exact test, {test.system} compared with {test.baseline}: {test.only_system:,} items "
                f"right in the first alone, {test.only_baseline:,} in the second, {p_value(test.p_value)}.",
                "dim",
            )
        )
    if main_sentences(evaluation) or evaluation.forgetting:
        console.print()
        print_gains(evaluation, console)
    if written:
        console.print()
        console.print("Written:")
    for path in written:
        console.print(Text(f"  {path}"), soft_wrap=True)  # whole, since it is to be copied


def _notes(evaluation: Evaluation) -> list[str]:
    """What numbers rest on, in sentences."""
    baseline, *others = evaluation.results
    notes: list[str | None] = [
        basis_sentence(evaluation),
        f"Below each score its {evaluation.inference.level:.0%} confidence interval.",
    ]
    if others:
        signs = ", ".join(f"{mark} {word}" for word, mark in MARKS.items())
        notes += [
            f"A paired test against {baseline.name} says: {signs}.",
            correction_sentence(evaluation),
            blunt_sentence(evaluation),
        ]
    notes += [cut_sentence(evaluation), seeds_sentence(evaluation)]
    return [note for note in notes if note]


def _probe(probe: Probe) -> dict[str, Any]:
    return {
        "name": probe.name,
        "description": probe.description,
        "items": len(probe.evaluation.items),
        "scores": {
            result.name: [asdict(found) for found in result.scores] for result in probe.evaluation.results
        },
        "comparisons": [asdict(found) for found in probe.evaluation.comparisons],
    }


def _result(result: RunResult) -> dict[str, Any]:
    return {
        "name": result.name,
        "method": result.method,
        "scores": [asdict(found) for found in result.scores],
        "task_scores": {
            task: [asdict(found) for found in scores] for task, scores in result.task_scores.items()
        },
        "cost": asdict(result.cost),
        "provenance": dict(result.provenance),
    }


def _by_task(evaluation: Evaluation) -> Table:
    """The metric that decides, task by task."""
    metric = METRICS[evaluation.primary]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(f"{metric.label} by task", overflow="fold", ratio=1)
    for result in evaluation.results:
        table.add_column(Text(result.name, overflow="fold"), overflow="fold", ratio=1)
    for task in evaluation.results[0].task_scores:
        cells = []
        for result in evaluation.results:
            found = next(one for one in result.task_scores[task] if one.metric == metric.name)
            cell = Text(score(found.value, metric), "bold")
            cells.append(cell.append(f"\n{interval(found, metric)}", "not bold dim"))
        table.add_row(Text(task), *cells)
    return table


def _table(evaluation: Evaluation, results: Sequence[RunResult]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for result in results:
        table.add_column(Text(result.name, overflow="fold"), overflow="fold", ratio=1)
    for found in evaluation.results[0].scores:
        metric = METRICS[found.metric]
        cells = []
        for result in results:
            ours = result.score(metric.name)
            cell = Text(score(ours.value, metric), "bold")
            if result is not evaluation.results[0]:
                word = evaluation.comparison(result.name, metric.name).verdict
                cell.append(f" {MARKS[word]}", f"not bold {_COLOURS[word]}")
            cells.append(cell.append(f"\n{interval(ours, metric)}", "not bold dim"))
        table.add_row(Text(metric.label), *cells)
    return table
