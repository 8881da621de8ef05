"""Several systems answer the same test papers until the time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import floor

from manytune.evaluation.answers import Question
from manytune.evaluation.results import Answer

Respond = Callable[[Sequence[Question]], Sequence[Answer]]
"""One system: questions to answers, in order."""

FIRST_PAPERS = 2
MOST_PAPERS = 8
"""Papers asked about at once: a few to see how long they take, then as many as fit, but no more than this."""

# The next papers may be longer than those before them.
_CAUTION = 1.15


@dataclass(frozen=True)
class Answered:
    """What was asked, and every system's answers to it.

    Attributes:
        questions: The questions of the first papers, in order.
        answers: For each system one answer a question.
        papers: How many papers that is.
        seconds: How long it took.
    """

    questions: tuple[Question, ...]
    answers: Mapping[str, tuple[Answer, ...]]
    papers: int
    seconds: float


def answer_until(
    papers: Sequence[Sequence[Question]],
    systems: Mapping[str, Respond],
    *,
    seconds: float,
    least: int,
    progress: Callable[[str, int, int], None],
    clock: Callable[[], float] = time.monotonic,
) -> Answered:
    """Ask all systems about the first papers, as many as the time allows.

    All systems answer a few papers before any of them sees the next ones, so whenever the time is up they
    have answered the same papers. How many that are depends on the machine alone, not on the answers' worth.

    Args:
        papers: Each paper's questions.
        systems: Who answers, by name.
        seconds: When to stop; begun papers are finished.
        least: Papers to answer even if the time is up.
        progress: Called before a system begins, with its name, the first paper and the last, counted from 1.
        clock: Seconds that only ever rise.
    """
    started = clock()
    answers: dict[str, list[Answer]] = {name: [] for name in systems}
    done = 0
    while done < len(papers):
        count = FIRST_PAPERS
        if done:
            spent = clock() - started
            count = floor(min(MOST_PAPERS, (seconds - spent) / (spent / done * _CAUTION)))
            if count < 1 and done >= least:
                break
        count = min(max(count, 1), len(papers) - done)
        asked = [question for paper in papers[done : done + count] for question in paper]
        for name, respond in systems.items():
            progress(name, done + 1, done + count)
            answers[name] += respond(asked)
        done += count
    return Answered(
        questions=tuple(question for paper in papers[:done] for question in paper),
        answers={name: tuple(given) for name, given in answers.items()},
        papers=done,
        seconds=clock() - started,
    )
