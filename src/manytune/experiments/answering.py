"""Asking a base with an adapter: answers, likelihoods, and losses of whole groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from manytune.data.encode import Encoded
from manytune.engine.answering import answer_prompts
from manytune.engine.likelihood import completion_nll
from manytune.evaluation.answers import Question, ask
from manytune.evaluation.records import GroupLoss
from manytune.evaluation.results import Answer
from manytune.store.base import Base
from manytune.training.speed.chunked_cross_entropy import loss_sum
from manytune.training.speed.layout_choice import batch_builder, choose_layout, prepared

Notice = Callable[[str, int, int], None]
"""Told what is going on, how much of it is done, and of how much."""

_ROWS_AT_ONCE = 8


def ask_model(
    model: Any,
    base: Base,
    questions: Sequence[Question],
    *,
    end_ids: Sequence[int],
    max_new_tokens: int,
    batch_size: int,
    likelihoods: bool,
    notice: Notice | None = None,
) -> tuple[Answer, ...]:
    """A model's greedy answers.

    Args:
        model: The base, perhaps with an adapter.
        base: Whose tokenizer it is.
        questions: What to ask.
        end_ids: Tokens that end an answer, besides the model's own.
        max_new_tokens: The longest answer.
        batch_size: Prompts to a batch.
        likelihoods: Whether to measure how likely the model finds the references, too.
        notice: Told of each finished batch.
    """

    def told(what: str) -> Callable[[int, int], None] | None:
        return None if notice is None else partial(notice, what)

    generate = partial(
        answer_prompts,
        model,
        base.tokenizer,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        end_ids=end_ids,
        progress=told("answers"),
    )
    likelihood = partial(completion_nll, model, batch_size=_ROWS_AT_ONCE, progress=told("likelihoods"))
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

    A group's rows go through the model together, so that what they begin with is read once.

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
            tokens = sum(len(row.completion_ids) for row in members)
            found.append(GroupLoss(loss_sum(model, batch).item(), tokens))
    return tuple(found)


def is_of_task(question: Question, task: str | None) -> bool:
    """Whether a question is one of a task's, by any of its templates; every question is one of None's."""
    if task is None:
        return True
    name = question.item.task or ""
    return name == task or name.startswith(f"{task}/")
