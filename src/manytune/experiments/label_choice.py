"""Asking a model that generates for labels: which label's word is the likeliest answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from manytune.data.encoding.encode import Encoder
from manytune.data.encoding.encoded import Encoded
from manytune.data.labels.label_words import CONTENT_FREE, LabelWords, label_probabilities
from manytune.data.records import Record
from manytune.data.templates import Example, PromptTemplate
from manytune.engine.likelihood import completion_nll
from manytune.errors import DataError
from manytune.evaluation.answers import by_prompt
from manytune.evaluation.results import Answer, Item
from manytune.experiments.answering import Notice


def labels_asked(
    examples: Sequence[Example], words: LabelWords
) -> tuple[tuple[Example, ...], tuple[Item, ...]]:
    """One example a prompt, and what is right for each: its label.

    Raises:
        DataError: A completion is neither a label nor a label's word, two rows with one prompt have different labels,
            or a row is running text.
    """
    asked, items = [], []
    for rows in by_prompt(examples):
        first = rows[0]
        if first.is_document:
            raise DataError("is running text, which has no label", where=first.where)
        labels = {words.label_of(row) for row in rows}
        if len(labels) > 1:
            raise DataError(
                f"has the same prompt as {rows[-1].where}, and another label ({', '.join(sorted(labels))})",
                where=first.where,
            )
        prompt = "\n\n".join(segment.text for segment in first.segments)
        asked.append(first)
        items.append(Item(prompt, (labels.pop(),), first.source, first.row, first.group, first.task))
    return tuple(asked), tuple(items)


def content_free_example(template: PromptTemplate) -> Example:
    """The prompt of a template each of whose fields says nothing.

    Raises:
        DataError: The template doesn't name its fields.
    """
    fields = template.fields_used()
    if fields is None:
        raise DataError(
            "--calibrate: the template reads fields that it doesn't name, so they can't be left empty"
        )
    return template.render(Record(dict.fromkeys(fields, CONTENT_FREE), "a prompt without content", 1))


def choose_labels(
    model: Any,
    examples: Sequence[Example],
    items: Sequence[Item],
    encoder: Encoder,
    words: LabelWords,
    *,
    batch_size: int,
    content_free: Example | None = None,
    notice: Notice | None = None,
) -> tuple[Answer, ...]:
    """The label whose word a model finds likeliest after each prompt, its probability, and the right label's.

    Args:
        model: The base, perhaps with an adapter.
        examples: One a prompt.
        items: What is right.
        encoder: Makes token ids as the training makes them.
        words: The labels and their words.
        batch_size: Sequences to a batch.
        content_free: The prompt by which probabilities are calibrated; None for none.
        notice: Called after each batch.
    """
    sequences: list[Encoded] = []
    for example in (*([] if content_free is None else [content_free]), *examples):
        sequences += words.sequences(example, encoder)
    progress = None if notice is None else partial(notice, "label words")
    measured = iter(completion_nll(model, sequences, batch_size=batch_size, progress=progress))

    def next_nlls() -> list[float]:
        return [next(measured)[0] for _ in words.names]

    before = None if content_free is None else next_nlls()
    answers = []
    for item in items:
        probabilities = label_probabilities(next_nlls(), before)
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        right = probabilities[words.names.index(item.references[0])]
        answers.append(
            Answer(
                words.names[best],
                tokens=1,
                finished="stop",
                nll=-math.log(max(right, 1e-300)),
                nll_tokens=1,
                confidence=min(1.0, probabilities[best]),
            )
        )
    return tuple(answers)
