"""The documents that the page shows: selected by rule, with every answer and what it shares with the reference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from manytune.evaluation.metrics import METRICS
from manytune.evaluation.results import Evaluation, RunResult
from manytune.evaluation.wording import score, signed

DOCUMENTS = 24
"""How many documents the page shows."""

EXAMPLES = 6
"""How many of them it shows at first; the others are folded away."""

_SPANS = re.compile(r"\w+|\W+")


@dataclass(frozen=True, slots=True)
class Span:
    """A part of an answer, and whether the reference has it in the same order."""

    text: str
    shared: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentAnswer:
    """One system's answer on the page."""

    system: int
    name: str
    spans: tuple[Span, ...]
    score: str
    cut: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One item on the page.

    Attributes:
        where: Its row.
        task: Its task.
        prompt: The prompt.
        references: The right answers.
        answers: Every system's answer.
        change: The featured system's gain over the first one, as text; empty with one system.
        direction: `"gain"`, `"loss"` or `"same"`.
    """

    where: str
    task: str | None
    prompt: str
    references: tuple[str, ...]
    answers: tuple[DocumentAnswer, ...]
    change: str
    direction: str


def featured(evaluation: Evaluation) -> int:
    """Number of the system that the documents are about: the one that a sweep recommends, or else the best one.

    The system that the others' gains are shares of is skipped if there is another.
    """
    names = [result.name for result in evaluation.results]
    if evaluation.sweep is not None:
        return names.index(evaluation.sweep.recommended)
    metric = METRICS[evaluation.primary]
    references = {found.reference for found in evaluation.shares}
    trained = [number for number in range(1, len(names)) if names[number] not in references]
    sign = 1 if metric.higher_is_better else -1
    return max(
        trained or range(len(names))[-1:],
        key=lambda number: sign * evaluation.results[number].score(metric.name).value,
    )


def documents(evaluation: Evaluation) -> list[Document]:
    """Documents from the largest gain to the largest loss of the featured system, evenly spaced in that ranking.

    The first six are such a selection by themselves, and the others follow in the same order. Selected by rule and not
    by taste: the page shows where the system failed as well as where it succeeded.
    """
    metric = METRICS[evaluation.primary]
    references = [item.references for item in evaluation.items]
    by_system = [
        metric.aggregate(metric.statistics(result.answers, references)) for result in evaluation.results
    ]
    ours = by_system[featured(evaluation)]
    change = ours - by_system[0]
    if not metric.higher_is_better:
        change = -change
    ranking = np.argsort(-change, kind="stable")
    chosen = np.unique(np.linspace(0, len(ranking) - 1, min(DOCUMENTS, len(ranking))).round().astype(int))
    found = []
    for place in ranking[chosen]:
        item = evaluation.items[place]
        difference = float(ours[place] - by_system[0][place])
        found.append(
            Document(
                where=f"{item.source}:{item.row}",
                task=item.task,
                prompt=item.prompt,
                references=item.references,
                answers=tuple(
                    _answer(number, result, place, item.references, score(float(scores[place]), metric))
                    for number, (result, scores) in enumerate(zip(evaluation.results, by_system, strict=True))
                ),
                change=signed(difference, metric) if len(evaluation.results) > 1 else "",
                direction="gain" if change[place] > 0 else "loss" if change[place] < 0 else "same",
            )
        )
    return _examples_first(found)


def _examples_first(ranking: list[Document]) -> list[Document]:
    first = set(np.linspace(0, len(ranking) - 1, min(EXAMPLES, len(ranking))).round().astype(int).tolist())
    return [ranking[place] for place in sorted(first)] + [
        document for place, document in enumerate(ranking) if place not in first
    ]


def marked(text: str, references: Sequence[str]) -> tuple[Span, ...]:
    """An answer split into spans that the most similar reference has in the same order, and others.

    Words are compared, whatever their case; white space between two shared words is shared, too.
    """
    parts = _SPANS.findall(text)
    words = [place for place, part in enumerate(parts) if part[0].isalnum() or part[0] == "_"]
    said = [parts[place].lower() for place in words]
    shared = max((_common(said, reference) for reference in references), key=len, default=frozenset())
    flags = [False] * len(parts)
    for word, place in enumerate(words):
        flags[place] = word in shared
    for place in range(1, len(parts) - 1):
        if parts[place].isspace():
            flags[place] = flags[place - 1] and flags[place + 1]
    joined: list[Span] = []
    for part, flag in zip(parts, flags, strict=True):
        if joined and joined[-1].shared == flag:
            joined[-1] = Span(joined[-1].text + part, flag)
        else:
            joined.append(Span(part, flag))
    return tuple(joined)


def _common(said: Sequence[str], reference: str) -> frozenset[int]:
    """Places of the words that a reference has in the same order."""
    wanted = re.findall(r"\w+", reference.lower())
    blocks = SequenceMatcher(None, said, wanted, autojunk=False).get_matching_blocks()
    return frozenset(block.a + step for block in blocks for step in range(block.size))


def _answer(
    number: int, result: RunResult, place: int, references: Sequence[str], found: str
) -> DocumentAnswer:
    answer = result.answers[place]
    return DocumentAnswer(
        system=number,
        name=result.name,
        spans=marked(answer.text.strip(), references),
        score=found,
        cut=answer.finished == "length",
    )
