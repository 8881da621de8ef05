"""The documents that the page shows: chosen by rule, with every answer and what it has in common with the reference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from manytune.evaluation.metrics import METRICS
from manytune.evaluation.results import Answer, Evaluation
from manytune.evaluation.wording import score, signed

DOCUMENTS = 24
"""How many documents the page shows."""

_PIECES = re.compile(r"\w+|\W+")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer, and whether the reference has it in the same order."""

    text: str
    shared: bool


@dataclass(frozen=True, slots=True)
class DocumentAnswer:
    """One system's answer on the page."""

    system: int
    name: str
    pieces: tuple[Piece, ...]
    score: str
    cut: bool


@dataclass(frozen=True, slots=True)
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

    What the others' gains are measured by is passed over if there is another.
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

    Picked by rule and not by taste: the page shows where the system failed as surely as where it shone.
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
        answers = tuple(
            _answer(
                number,
                result.name,
                result.answers[place],
                item.references,
                score(float(scores[place]), metric),
            )
            for number, (result, scores) in enumerate(zip(evaluation.results, by_system, strict=True))
        )
        difference = float(ours[place] - by_system[0][place])
        found.append(
            Document(
                f"{item.source}:{item.row}",
                item.task,
                item.prompt,
                item.references,
                answers,
                signed(difference, metric) if len(evaluation.results) > 1 else "",
                "gain" if change[place] > 0 else "loss" if change[place] < 0 else "same",
            )
        )
    return found


def marked(text: str, references: Sequence[str]) -> tuple[Piece, ...]:
    """An answer cut into pieces that the most similar reference has in the same order, and others.

    Words are compared, whatever their case; what stands between two shared words is shared if it is white space.
    """
    pieces = _PIECES.findall(text)
    words = [place for place, piece in enumerate(pieces) if piece[0].isalnum() or piece[0] == "_"]
    said = [pieces[place].lower() for place in words]
    shared = max((_common(said, reference) for reference in references), key=len, default=frozenset())
    flags = [False] * len(pieces)
    for word, place in enumerate(words):
        flags[place] = word in shared
    for place in range(1, len(pieces) - 1):
        if pieces[place].isspace():
            flags[place] = flags[place - 1] and flags[place + 1]
    joined: list[Piece] = []
    for piece, flag in zip(pieces, flags, strict=True):
        if joined and joined[-1].shared == flag:
            joined[-1] = Piece(joined[-1].text + piece, flag)
        else:
            joined.append(Piece(piece, flag))
    return tuple(joined)


def _common(said: Sequence[str], reference: str) -> frozenset[int]:
    """Places of the words that a reference has in the same order."""
    wanted = re.findall(r"\w+", reference.lower())
    blocks = SequenceMatcher(None, said, wanted, autojunk=False).get_matching_blocks()
    return frozenset(block.a + step for block in blocks for step in range(block.size))


def _answer(system: int, name: str, answer: Answer, references: Sequence[str], found: str) -> DocumentAnswer:
    pieces = marked(answer.text.strip(), references)
    return DocumentAnswer(system, name, pieces, found, cut=answer.finished == "length")
