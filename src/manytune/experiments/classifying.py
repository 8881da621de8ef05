"""Asking a head for labels, and the baseline that it is compared with: the most frequent label, or the mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from manytune.data.labels.label_encoder import Labelled, RowEncoder
from manytune.data.labels.label_kinds import AnyLabels
from manytune.data.labels.labelled_dataset import row_encoder
from manytune.data.labels.numeric_labels import NumericLabels
from manytune.data.labels.word_encoder import Tagged
from manytune.data.labels.word_labels import WordLabels
from manytune.data.recipe import DataRecipe
from manytune.evaluation.answers import Question
from manytune.evaluation.results import Answer
from manytune.experiments.answering import Notice
from manytune.store.base import Base
from manytune.store.classifier_base import text_positions
from manytune.training.batches import labelled

MAJORITY = "majority class"
"""What tables call the baseline: a base without a head gives no labels, and an untrained head random ones."""
MEAN = "mean label"
"""The same of a regression."""
CUT = "<cut>"
"""What a word is answered with that isn't read, since its text is cut before it."""


def baseline_name(labels: AnyLabels) -> str:
    """What tables call the baseline."""
    return MEAN if isinstance(labels, NumericLabels) else MAJORITY


def label_encoder_of(base: Base, labels: AnyLabels, data: DataRecipe) -> RowEncoder:
    """Encodes rows as the training does; a text that is too long is an error unless the training cuts them."""
    return row_encoder(data, base.tokenizer, labels, positions=text_positions(base), images=base.images)


@torch.inference_mode()
def ask_classifier(
    model: Any,
    questions: Sequence[Question],
    labels: AnyLabels,
    *,
    batch_size: int,
    notice: Notice | None = None,
) -> tuple[Answer, ...]:
    """The label that a classifier finds likeliest for each text, its probability, and the right label's likelihood.

    Of a regression the number, in the labels' unit; of words the likeliest tag of each, with spaces between them.

    Args:
        model: The base with its head, in evaluation mode.
        questions: What to ask, as `labelled_questions` makes them.
        labels: The model's own: what it was trained on.
        batch_size: Texts to a batch; batches are of similar lengths.
        notice: Called after each batch.
    """
    rows: list[Any] = [question.encoded[0] for question in questions]
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place].input_ids))
    device = next(model.parameters()).device
    found: dict[int, Answer] = {}
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = labelled.build([rows[place] for place in places], pad_id=0).to(device)
        logits = batch.logits(model).float().cpu()
        for place, values in zip(places, logits, strict=True):
            found[place] = _read(values, labels, rows[place])
        if notice is not None:
            notice("labels", len(found), len(rows))
    return tuple(found[place] for place in range(len(rows)))


def _read(logits: Tensor, labels: AnyLabels, row: Labelled) -> Answer:
    """The answer that a head's outputs for one text are."""
    if isinstance(labels, NumericLabels):
        return number_answer(labels.value(float(logits)))
    values = logits.log_softmax(-1)
    if isinstance(row, Tagged):
        return _tags(values[torch.tensor(row.first_tokens)], labels.names, row)
    chosen = int(values.argmax())
    return _answer(labels.names[chosen], math.exp(float(values[chosen])), -float(values[row.label]))


def _tags(log_probabilities: Tensor, names: Sequence[str], row: Tagged) -> Answer:
    """The tags of a row's words, one a word that has a token."""
    chosen = dict(zip(row.words, log_probabilities.argmax(-1).tolist(), strict=True))
    tags = [names[chosen[word]] if word in chosen else CUT for word in range(row.length)]
    right = torch.tensor(row.completion_ids)
    nll = -float(log_probabilities.gather(1, right[:, None]).sum())
    return Answer(" ".join(tags), tokens=len(chosen), finished="stop", nll=nll, nll_tokens=len(chosen))


def number_answer(value: float) -> Answer:
    """A number as an answer, with as many digits as float32 has."""
    return Answer(f"{value:.9g}", tokens=1, finished="stop")


def baseline_answers(questions: Sequence[Question], labels: AnyLabels) -> tuple[Answer, ...]:
    """The training rows' most frequent label for every text, with its share of them as the probability; or their mean.

    Raises:
        DataError: How many training rows have which label isn't known.
    """
    if isinstance(labels, NumericLabels):
        return tuple(number_answer(labels.mean) for _ in questions)
    name, share = labels.majority
    shares = [count / sum(labels.counts) for count in labels.counts]
    rows: list[Labelled] = [question.encoded[0] for question in questions]  # type: ignore[misc]
    if isinstance(labels, WordLabels):
        return tuple(
            Answer(
                " ".join([name] * row.length),
                tokens=row.targets,
                finished="stop",
                nll=-sum(math.log(shares[tag]) for tag in row.completion_ids),
                nll_tokens=row.targets,
            )
            for row in rows
            if isinstance(row, Tagged)
        )
    return tuple(_answer(name, share, -math.log(shares[row.label])) for row in rows)


def baseline_facts(labels: AnyLabels) -> dict[str, str]:
    """What a report says of how labels are chosen, and of the baseline."""
    if isinstance(labels, NumericLabels):
        return {
            "Answers": "the head's number in the labels' unit; a decoder's head reads a text's last token",
            "Baseline": f"the training rows' mean, {labels.mean:.4g}, for every text, since the untouched base has no "
            "head",
        }
    name, share = labels.majority
    if isinstance(labels, WordLabels):
        return {
            "Answers": "the tag with the highest probability at the first token of each word",
            "Baseline": f"the training words' most frequent tag, {name!r} ({share:.1%} of them), for every word, since "
            "the untouched base has no head",
        }
    return {
        "Answers": "the label with the highest probability; a decoder's head reads a text's last token",
        "Baseline": f"the training rows' most frequent label, {name!r} ({share:.1%} of them), since the untouched base "
        "has no head",
    }


def _answer(label: str, probability: float, nll: float) -> Answer:
    return Answer(label, tokens=1, finished="stop", nll=nll, nll_tokens=1, confidence=min(1.0, probability))
