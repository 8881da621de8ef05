"""Asking a model: answers, likelihoods, and losses of whole groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from manytune.data.encoding.encoded import Encoded
from manytune.engine.answering import answer_prompts
from manytune.engine.constraint import Constraint
from manytune.engine.likelihood import completion_nll
from manytune.engine.static_batch import Generation, Progress
from manytune.evaluation.answers import Question, ask
from manytune.evaluation.records import GroupLoss
from manytune.evaluation.results import Answer
from manytune.training.speed.chunked_cross_entropy import loss_sum
from manytune.training.speed.layout_choice import batch_builder, choose_layout, prepared

Notice = Callable[[str, int, int], None]
"""Called with what is going on, how much of it is done, and of how much."""

_ROWS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How answers are generated.

    Attributes:
        max_new_tokens: The longest answer.
        batch_size: Prompts to a batch.
        end_ids: Tokens that end an answer in addition to the model's own.
        constraint: What every answer must look like; None for anything.
        beams: 1 for greedy decoding, more for a beam search.
        likelihood_batch_size: References to a batch, where their likelihood is measured.
    """

    max_new_tokens: int
    batch_size: int
    end_ids: tuple[int, ...] = ()
    constraint: Constraint | None = None
    beams: int = 1
    likelihood_batch_size: int = _ROWS_AT_ONCE


def answer(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[tuple[int, ...]],
    decoding: Decoding,
    *,
    progress: Progress | None = None,
) -> list[Generation]:
    """A model's answers to prompts, in their order.

    Args:
        model: The base, perhaps with an adapter.
        tokenizer: The base's.
        prompts: Token ids.
        decoding: How to generate.
        progress: Called whenever answers are finished.
    """
    return answer_prompts(
        model,
        tokenizer,
        prompts,
        max_new_tokens=decoding.max_new_tokens,
        batch_size=decoding.batch_size,
        beams=decoding.beams,
        end_ids=decoding.end_ids,
        constraint=decoding.constraint,
        progress=progress,
    )


def ask_model(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    decoding: Decoding,
    *,
    likelihoods: bool = False,
    notice: Notice | None = None,
) -> tuple[Answer, ...]:
    """A model's answers to questions, and perhaps how likely it finds the right ones.

    Args:
        model: The base, perhaps with an adapter.
        tokenizer: The base's.
        questions: What to ask.
        decoding: How to generate.
        likelihoods: Whether to measure how likely the model finds the references, too.
        notice: Called after each batch.
    """

    def progress(what: str) -> Progress | None:
        return None if notice is None else partial(notice, what)

    def generate(prompts: Sequence[tuple[int, ...]]) -> list[Generation]:
        return answer(model, tokenizer, prompts, decoding, progress=progress("answers"))

    likelihood = partial(
        completion_nll,
        model,
        batch_size=decoding.likelihood_batch_size,
        progress=progress("likelihoods"),
    )
    return ask(questions, generate, likelihood if likelihoods else None)


def read_texts(
    model: Any, passages: Sequence[Encoded], *, notice: Notice | None = None
) -> tuple[Answer, ...]:
    """How likely a model finds running text: answers that say nothing and have likelihoods."""
    progress = None if notice is None else partial(notice, "reading")
    measured = completion_nll(model, passages, batch_size=_ROWS_AT_ONCE, progress=progress)
    return tuple(Answer("", 0, "stop", nll, tokens) for nll, tokens in measured)


@torch.no_grad()
def group_losses(model: Any, rows: Sequence[Encoded], layout: str) -> tuple[GroupLoss, ...]:
    """The loss on each independent group of rows, in the order of their first rows.

    A group's rows go through the model together, so that a prefix that they share is computed once.

    Args:
        model: In evaluation mode.
        rows: With their groups; a row without one is a group of its own.
        layout: The batch layout that the recipe asks for.
    """
    groups: dict[object, list[Encoded]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(place if row.group is None else row.group, []).append(row)
    choice = choose_layout(model, layout)
    build = batch_builder(model, choice)
    device = next(model.parameters()).device
    found = []
    with prepared(model, choice):
        for members in groups.values():
            batch = build(members, pad_id=0).to(device)
            tokens = sum(row.targets for row in members)
            found.append(GroupLoss(loss_sum(model, batch).item(), tokens))
    return tuple(found)


def is_of_task(question: Question, task: str | None) -> bool:
    """Whether a question is one of a task's, by any of its templates; every question is one of None's."""
    if task is None:
        return True
    name = question.item.task or ""
    return name == task or name.startswith(f"{task}/")
