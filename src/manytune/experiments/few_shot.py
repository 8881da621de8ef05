"""In-context baselines: the untouched base asked with training examples before each question.

As in Brown et al., arXiv 2005.14165. Whether a better prompt would do is the question before any fine-tuning; this
answers it on the same test rows.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from manytune.data.encoding.encode import Encoder
from manytune.data.templates import Example, Segment
from manytune.errors import DataError
from manytune.evaluation.answers import Question, questions_from

Choice = Literal["random", "similar"]

_Ranking = Callable[[Example], Sequence[Example]]
_AT_ONCE = 1_000_000  # similarities that are held in memory


@dataclass(frozen=True)
class FewShot:
    """Questions with examples before them.

    Attributes:
        questions: In the order of the questions without examples.
        shortened: How many of them have fewer examples than were asked for, as no more fit into the context.
    """

    questions: tuple[Question, ...]
    shortened: int


def few_shot_questions(
    asked: Sequence[Example],
    training: Sequence[Example],
    encoder: Encoder,
    *,
    shots: int,
    choose: Choice = "random",
    seed: int = 0,
    room: int | None = None,
) -> FewShot:
    """Put training examples of a question's own task before it, as turns that were answered.

    Rows that share a prompt are one example, with the first row's completion. In chat mode an example is a turn of the
    user's and one of the assistant's, after the system message; in plain mode its text and its answer, parted by
    blank lines.

    Args:
        asked: The test rows.
        training: The rows that examples are taken from.
        encoder: Makes the prompts; it cuts none.
        shots: How many examples.
        choose: `"random"`: the same ones for every question of a task, and those of fewer shots are the first of
            them. `"similar"`: those whose prompts are most similar to the question's by the cosine of their words'
            TF-IDF weights, the most similar last.
        seed: Decides the random ones.
        room: Tokens that a prompt may have; examples that don't fit are left out, the first to be chosen last.

    Raises:
        DataError: A task has fewer training prompts than `shots`, or a row can't be encoded.
    """
    ranking = _rankings(asked, training, shots=shots, choose=choose, seed=seed)
    shortened = set()
    rows = []
    for example in asked:
        chosen = ranking(example)[:shots]
        if choose == "similar":
            chosen = chosen[::-1]
        row, own = _with_examples(example, chosen), encoder.of(example)
        while chosen and room is not None and len(own.prompt_ids(row.segments, row.tools)) > room:
            chosen = chosen[1:] if choose == "similar" else chosen[:-1]
            row = _with_examples(example, chosen)
            shortened.add((example.segments, example.task))
        rows.append(row)
    return FewShot(questions_from(rows, encoder), len(shortened))


def _rankings(
    asked: Sequence[Example], training: Sequence[Example], *, shots: int, choose: Choice, seed: int
) -> _Ranking:
    """What puts the training examples of a question's task in the order in which they are chosen."""
    tasks: dict[str | None, dict[tuple[Segment, ...], Example]] = {}
    for example in training:
        tasks.setdefault(example.task, {}).setdefault(example.segments, example)
    for task in {example.task for example in asked}:
        there = len(tasks.get(task, {}))
        if there < shots:
            of_task = "" if task is None else f" of the task {task!r}"
            raise DataError(
                f"{shots} shots were asked for, and the training rows{of_task} have {there} prompts"
            )
    pools = {task: list(examples.values()) for task, examples in tasks.items()}
    if choose == "random":
        for task, pool in pools.items():
            random.Random(f"{seed}/{task}").shuffle(pool)  # noqa: S311  # no secret
        return lambda example: pools[example.task]
    ranked: dict[tuple[object, ...], Sequence[Example]] = {}
    for task, pool in pools.items():
        questions = list(dict.fromkeys(one.segments for one in asked if one.task == task))
        nearest = most_similar(
            [_text(segments) for segments in questions], [_text(one.segments) for one in pool], shots
        )
        for segments, places in zip(questions, nearest, strict=True):
            ranked[segments, task] = [pool[place] for place in places]
    return lambda example: ranked[example.segments, example.task]


def _text(segments: Sequence[Segment]) -> str:
    return "\n".join(segment.text for segment in segments if segment.role != "system")


def _with_examples(example: Example, chosen: Sequence[Example]) -> Example:
    system = tuple(segment for segment in example.segments if segment.role == "system")
    turns: list[Segment] = []
    for one in chosen:
        turns += [segment for segment in one.segments if segment.role != "system"]
        turns.append(one.answer)
    question = tuple(segment for segment in example.segments if segment.role != "system")
    return dataclasses.replace(example, segments=(*system, *turns, *question))


def most_similar(questions: Sequence[str], texts: Sequence[str], count: int) -> list[list[int]]:
    """For each question the places of the most similar texts, the most similar first.

    The similarity is the cosine of vectors of words' counts times ln((1 + n) / (1 + df)) + 1, n being the number of
    texts and df of those with the word (Salton and Buckley 1988, smoothed). Of equally similar texts the first comes
    first.
    """
    if not questions:
        return []
    vocabulary: dict[str, int] = {}
    there = _counts(texts, vocabulary, grow=True)
    weights = np.log((1 + len(texts)) / (1 + there.getnnz(axis=0))) + 1
    there, wanted = (_unit(counts, weights) for counts in (there, _counts(questions, vocabulary, grow=False)))
    found = []
    step = max(1, _AT_ONCE // max(1, len(texts)))
    for start in range(0, len(questions), step):
        similarity = (wanted[start : start + step] @ there.T).toarray()
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
        found += order.tolist()
    return found


def _counts(texts: Sequence[str], vocabulary: dict[str, int], *, grow: bool) -> csr_matrix:
    """How often each text has each word; words that the vocabulary lacks are added to it or left out."""
    rows, columns = [], []
    for row, text in enumerate(texts):
        for word in re.findall(r"\w+", text.lower()):
            place = vocabulary.setdefault(word, len(vocabulary)) if grow else vocabulary.get(word)
            if place is not None:
                rows.append(row)
                columns.append(place)
    ones = np.ones(len(rows))
    return csr_matrix((ones, (rows, columns)), shape=(len(texts), max(1, len(vocabulary))))


def _unit(counts: csr_matrix, weights: NDArray[np.float64]) -> csr_matrix:
    weighted = csr_matrix(counts.multiply(weights))
    lengths = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    return csr_matrix(weighted.multiply(1 / np.where(lengths > 0, lengths, 1)[:, None]))
