"""From examples to questions, and from questions to a system's answers.

Generation comes in as a callable, so this package knows no engine and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from manytune.data.answer_format import BARE, AnswerFormat
from manytune.data.encode import Encoder
from manytune.data.encoded import Encoded
from manytune.data.templates import Example
from manytune.errors import DataError
from manytune.evaluation.results import Answer, Item


class Generated(Protocol):
    """What a generator returns for a prompt; `manytune.engine.static_batch.Generation` has it."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The generated tokens, without the end token."""

    @property
    def text(self) -> str:
        """Their text, special tokens in it."""

    @property
    def finished(self) -> Literal["stop", "length"]:
        """Whether the model ended it or the limit did."""


Generate = Callable[[Sequence[tuple[int, ...]]], Sequence[Generated]]
"""Prompts' token ids to answers, in order."""

Likelihood = Callable[[Sequence[Encoded]], Sequence[tuple[float, int]]]
"""Sequences to (negative log likelihood of the completion in nats, its tokens), in order."""


@dataclass(frozen=True, slots=True)
class Question:
    """One item with its token ids.

    Attributes:
        item: What is recorded of it.
        encoded: The prompt with each of the item's references.
        form: What is an answer in the text that is generated for it.
    """

    item: Item
    encoded: tuple[Encoded, ...]
    form: AnswerFormat = BARE

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """What the model is given."""
        return self.encoded[0].prompt_ids


def questions_from(examples: Sequence[Example], encoder: Encoder) -> tuple[Question, ...]:
    """Make one question of every prompt; rows that share a prompt are its several references.

    Args:
        examples: The rows, rendered.
        encoder: Of the base that will answer.

    Raises:
        DataError: There are no examples, one is too long for the encoder, or rows of different groups share
        a prompt.
    """
    if not examples:
        raise DataError("there are no examples to evaluate on")
    by_prompt: dict[object, list[Example]] = {}
    for example in examples:
        by_prompt.setdefault((example.segments, example.task), []).append(example)
    return tuple(_question(rows, encoder) for rows in by_prompt.values())


def ask(
    questions: Sequence[Question], generate: Generate, likelihood: Likelihood | None = None
) -> tuple[Answer, ...]:
    """One system's answers: without what its chat template writes around them, and without reasoning.

    Args:
        questions: What to ask.
        generate: The system's generator.
        likelihood: Its likelihoods; `None` leaves them unmeasured. An item with several references gets
        their sum.
    """
    generated = generate([question.prompt_ids for question in questions])
    measured: list[tuple[float, int] | None] = [None] * len(questions)
    if likelihood is not None:
        values = iter(likelihood([encoded for question in questions for encoded in question.encoded]))
        for index, question in enumerate(questions):
            sums = [next(values) for _ in question.encoded]
            measured[index] = (sum(nll for nll, _ in sums), sum(tokens for _, tokens in sums))
    answers = []
    for question, answer, nll in zip(questions, generated, measured, strict=True):
        total, tokens = nll or (None, 0)
        text = question.form.read(answer.text).content
        answers.append(Answer(text, len(answer.token_ids), answer.finished, total, tokens))
    return tuple(answers)


def chosen(labels: Sequence[str]) -> tuple[Answer, ...]:
    """A classification head's choices as answers, for `accuracy` and `f1`.

    Args:
        labels: The name of the class that was chosen for each item.
    """
    return tuple(Answer(label, tokens=1, finished="stop") for label in labels)


def _question(rows: Sequence[Example], encoder: Encoder) -> Question:
    first = rows[0]
    for row in rows:
        if row.group != first.group:
            raise DataError(
                f"has the same prompt as {first.where} but belongs to group {row.group!r} instead of {first.group!r}; "
                "rows that share a prompt are references of one item and need the same group",
                where=row.where,
            )
    item = Item(
        prompt="\n\n".join(segment.text for segment in first.segments),
        references=tuple(encoder.reference(row) for row in rows),
        source=first.source,
        row=first.row,
        group=first.group,
        task=first.task,
    )
    return Question(item, tuple(encoder.encode(row) for row in rows), encoder.answers)
