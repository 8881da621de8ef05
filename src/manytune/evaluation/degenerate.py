"""Answers that are no answers: empty ones, and ones that repeat themselves until they are cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from manytune.evaluation.results import Answer, Evaluation, RunResult

NOTABLE = 0.2
"""The share of a system's answers from which on it is said to degenerate."""

_TAIL = 600  # characters of an answer's end in which a repetition is looked for
_LEAST = 40  # characters that a repetition has at least
_TIMES = 3  # how often its phrase comes at least


@dataclass(frozen=True)
class Degenerate:
    """How many of a system's answers are no answers.

    Attributes:
        asked: How many there are.
        loops: Those that end in a phrase three times or more, over half of their length.
        empty: Those without text.
    """

    asked: int
    loops: int
    empty: int

    @property
    def share(self) -> float:
        """The share of both kinds."""
        return (self.loops + self.empty) / self.asked if self.asked else 0.0


def degenerate(answers: Sequence[Answer]) -> Degenerate:
    """Count the answers that are no answers."""
    texts = [answer.text.strip() for answer in answers]
    return Degenerate(len(texts), sum(map(is_loop, texts)), sum(not text for text in texts))


def is_loop(text: str) -> bool:
    """Whether a text's end, over half of it, is a phrase that comes three times or more; the last may be cut.

    A list of short equal lines of fewer than 40 characters in all is none.
    """
    text = text.strip()
    tail = text[-_TAIL:]
    needed = max(_LEAST, min(len(tail), len(text) / 2))
    for period in range(1, len(tail) // _TIMES + 1):
        same = 0
        while same < len(tail) - period and tail[-1 - same] == tail[-1 - same - period]:
            same += 1
        if same + period >= max(needed, _TIMES * period):
            return True
    return False


def degenerate_note(evaluation: Evaluation, result: RunResult) -> str:
    """That a system degenerates, in a few words for a verdict; empty if it doesn't."""
    found = _degenerate(evaluation, result)
    if found.share < NOTABLE:
        return ""
    return f"{found.loops + found.empty:,} of {result.name}'s {found.asked:,} answers are loops or empty"


def degenerate_sentences(evaluation: Evaluation) -> list[str]:
    """The systems of which many answers are no answers, a sentence each, the baseline's with what follows from it."""
    sentences = []
    for place, result in enumerate(evaluation.results):
        found = _degenerate(evaluation, result)
        if found.share < NOTABLE:
            continue
        kinds = [
            f"{number:,} {one if number == 1 else many}"
            for number, one, many in (
                (found.loops, "repeats a phrase to the end", "repeat a phrase to the end"),
                (found.empty, "is empty", "are empty"),
            )
            if number
        ]
        sentence = f"{result.name} degenerates: of its {found.asked:,} answers, {' and '.join(kinds)}."
        if place == 0 and len(evaluation.results) > 1:
            sentence += " A gain over such answers doesn't yet make a good fine-tune."
        sentences.append(sentence)
    return sentences


def _degenerate(evaluation: Evaluation, result: RunResult) -> Degenerate:
    """Of a system's answers; running text is read, and isn't answered."""
    answered = zip(evaluation.items, result.answers, strict=True)
    return degenerate([answer for item, answer in answered if item.prompt])
