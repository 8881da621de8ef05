"""From examples to questions, and from questions to a system's answers.

Generation comes in as a callable, so this package knows no engine and no model.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from manytune.data.encoding.answer_format import BARE, AnswerFormat
from manytune.data.encoding.encode import Encoder
from manytune.data.encoding.encoded import Encoded
from manytune.data.labels.label_encoder import RowEncoder
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
        is_document: Whether it is running text, to which there is no answer; `encoded` are its parts.
    """

    item: Item
    encoded: tuple[Encoded, ...]
    form: AnswerFormat = BARE
    is_document: bool = False

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """What the model is given."""
        return self.encoded[0].prompt_ids


def questions_from(
    examples: Sequence[Example], encoder: Encoder, *, longest: int | None = None
) -> tuple[Question, ...]:
    """Make one question of every prompt; rows that share a prompt are its several references.

    Of a conversation its last answer is asked for, after all that comes before it; `each_turn` asks for every one. A
    document is only read.

    Args:
        examples: The rows, rendered.
        encoder: Of the base that will answer.
        longest: The most tokens of a document that are read at once; a longer one is read in parts.

    Raises:
        DataError: There are no examples, one is too long for the encoder, or rows of different groups share
        a prompt.
    """
    return tuple(
        _document(rows[0], encoder, longest) if rows[0].is_document else _question(rows, encoder)
        for rows in by_prompt(examples)
    )


def by_prompt(examples: Sequence[Example]) -> list[list[Example]]:
    """The rows of each prompt, in the order of the first ones; a document has none but its own.

    Raises:
        DataError: There are no examples.
    """
    if not examples:
        raise DataError("there are no examples to evaluate on")
    found: dict[object, list[Example]] = {}
    for place, example in enumerate(examples):
        how = json.dumps([example.tools, dict(example.template_kwargs)], default=str)
        asked = (example.segments, how, example.task)
        found.setdefault(place if example.is_document else asked, []).append(example)
    return list(found.values())


def items_from(asked: Sequence[Sequence[Example]]) -> tuple[Item, ...]:
    """Make one item of the rows of each prompt without any base; completions are the references as they are written.

    Raises:
        DataError: A row is a document or its answer calls tools, so that a base has to say what is right; or rows of
            different groups share a prompt.
    """
    for rows in asked:
        if rows[0].is_document or any(row.tool_calls for row in rows):
            raise DataError(
                "is running text or calls tools, which only a base's template can make comparable; name a run or an "
                "adapter, too",
                where=rows[0].where,
            )
    return tuple(
        _item(rows, [one.completion for row in rows for one in _right_answers(row)]) for rows in asked
    )


def labelled_questions(examples: Sequence[Example], encoder: RowEncoder) -> tuple[Question, ...]:
    """A question of every row of a classifier: its text or image is asked, its label is right.

    Rows with the same text are a group, since a classifier answers them alike.

    Raises:
        DataError: There are no examples, one has a label that isn't the classifier's, or one is too long.
    """
    if not examples:
        raise DataError("there are no examples to evaluate on")
    texts = ["\n\n".join(segment.text for segment in example.segments) for example in examples]
    repeated = {text for text, count in Counter(texts).items() if count > 1}
    return tuple(
        Question(
            Item(
                prompt=encoder.shown(example),
                references=(example.completion,),
                source=example.source,
                row=example.row,
                group=example.group or (_text_group(text) if text in repeated else None),
            ),
            (encoder.encode(example)[0],),
        )
        for text, example in zip(texts, examples, strict=True)
    )


def each_turn(examples: Iterable[Example]) -> tuple[Example, ...]:
    """Every answer that bears the loss as an example of its own, after the conversation as it was recorded.

    Those of one conversation are a group, since they aren't independent.
    """
    return tuple(
        replace(turn, group=example.group or (example.where if example.earlier else None))
        for example in examples
        for turn in example.turns()
    )


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
    asked = [question for question in questions if not question.is_document]
    replies = iter(generate([question.prompt_ids for question in asked]) if asked else ())
    measured: list[tuple[float, int] | None] = [None] * len(questions)
    if likelihood is not None:
        values = iter(likelihood([encoded for question in questions for encoded in question.encoded]))
        for index, question in enumerate(questions):
            sums = [next(values) for _ in question.encoded]
            measured[index] = (sum(nll for nll, _ in sums), sum(tokens for _, tokens in sums))
    answers = []
    for question, nll in zip(questions, measured, strict=True):
        total, tokens = nll or (None, 0)
        if question.is_document:
            answers.append(Answer("", 0, "stop", total, tokens))
            continue
        answer = next(replies)
        text = question.form.read(answer.text).content
        answers.append(Answer(text, len(answer.token_ids), answer.finished, total, tokens))
    return tuple(answers)


def chosen(labels: Sequence[str]) -> tuple[Answer, ...]:
    """A classification head's choices as answers, for `accuracy` and `f1`.

    Args:
        labels: The name of the class that was chosen for each item.
    """
    return tuple(Answer(label, tokens=1, finished="stop") for label in labels)


def _text_group(text: str) -> str:
    return f"text {hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def _question(rows: Sequence[Example], encoder: Encoder) -> Question:
    right = [one for row in rows for one in _right_answers(row)]
    item = _item(rows, [encoder.reference(one) for one in right])
    return Question(item, tuple(encoder.encode(one) for one in right), encoder.of(rows[0]).answers)


def _item(rows: Sequence[Example], references: Sequence[str]) -> Item:
    first = rows[0]
    for row in rows:
        if row.group != first.group:
            raise DataError(
                f"has the same prompt as {first.where} but belongs to group {row.group!r} instead of {first.group!r}; "
                "rows that share a prompt are references of one item and need the same group",
                where=row.where,
            )
    return Item(
        prompt="\n\n".join(segment.text for segment in first.segments),
        references=tuple(references),
        source=first.source,
        row=first.row,
        group=first.group,
        task=first.task,
    )


def _right_answers(example: Example) -> list[Example]:
    """The example with each of its references as the completion; itself without any."""
    return [
        replace(example, completion=text, tool_calls=(), reasoning=None) for text in example.references
    ] or [example]


def _document(example: Example, encoder: Encoder, longest: int | None) -> Question:
    item = Item(
        prompt="",
        references=(example.completion,),
        source=example.source,
        row=example.row,
        group=example.group,
        task=example.task,
    )
    return Question(item, encoder.sequences(example, longest=longest), is_document=True)
