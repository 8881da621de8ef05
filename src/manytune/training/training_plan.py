"""How many steps a training takes, and which rows each of its batches holds if a budget of tokens decides that."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from torch import nn

from manytune.errors import RunError
from manytune.training.batches.grouping import BatchPlan, plan_batches
from manytune.training.loop.rows import TrainingRows
from manytune.training.loop.samplers import row_sampler
from manytune.training.recipe import TrainingRecipe
from manytune.training.speed.layout_choice import LayoutChoice, choose_layout

_MOST_PLANNED = 20_000_000
"""Batches within a token budget, which are planned at once: a gigabyte or two of their rows' numbers."""


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """The course of a training, known before it begins.

    Attributes:
        layout: How the batches are laid out.
        steps: Optimizer steps of the whole training.
        steps_per_epoch: Optimizer steps of one pass over the rows; with a token budget, of the first.
        batches: With `token_budget`, every batch of the training: indices of rows. None if each has `batch_size` rows.
        first_epoch: The same of one whole pass over the rows, however far the training goes.
        epochs: Passes over the rows, as a fraction.
    """

    layout: LayoutChoice
    steps: int
    steps_per_epoch: int
    batches: BatchPlan | None
    first_epoch: BatchPlan | None
    epochs: float


def plan_training(settings: TrainingRecipe, rows: TrainingRows, *, layout: LayoutChoice) -> TrainingPlan:
    """Plan a training.

    Args:
        settings: The recipe's training section.
        rows: What is trained on.
        layout: How the batches will be laid out: with a token budget, that decides how many rows they take.

    Raises:
        DataError: One row alone exceeds the token budget; names the row.
        RunError: With a token budget, so many batches are asked for that they can't be planned beforehand.
    """
    if settings.token_budget is not None:
        return _within_budget(settings, rows, layout)
    batches = math.ceil(rows.rows_per_epoch / settings.batch_size)
    per_epoch = math.ceil(batches / settings.accumulation)
    steps = settings.max_steps or math.ceil(settings.epochs * per_epoch)
    return TrainingPlan(
        layout=layout,
        steps=steps,
        steps_per_epoch=per_epoch,
        batches=None,
        first_epoch=None,
        epochs=steps / per_epoch,
    )


def count_steps(model: nn.Module, settings: TrainingRecipe, rows: TrainingRows) -> int:
    """Optimizer steps of a training that isn't set up yet; the model, which decides the layout, may lack its method."""
    layout = LayoutChoice(settings.batching, settings.batching, None)
    # Whether a layout suits a model takes a trial of it, and only a budget depends on that.
    if settings.token_budget is not None:
        layout = choose_layout(model, settings.batching)
    return plan_training(settings, rows, layout=layout).steps


def first_epoch(plan: TrainingPlan, settings: TrainingRecipe, rows: TrainingRows) -> Sequence[Sequence[int]]:
    """The batches of one pass over the rows, whether or not the training goes so far."""
    if plan.first_epoch is not None:
        return plan.first_epoch
    size = settings.batch_size
    order = list(
        row_sampler(
            rows.rows,
            batch_size=size,
            seed=settings.seed,
            group_prefixes=settings.group_prefixes,
            mixture=rows.mixture,
            by_length=rows.by_length,
        )
    )
    return [order[start : start + size] for start in range(0, len(order), size)]


def _within_budget(settings: TrainingRecipe, rows: TrainingRows, layout: LayoutChoice) -> TrainingPlan:
    batches: list[tuple[int, ...]] = []
    epochs: list[BatchPlan] = []
    wanted = None if settings.max_steps is None else settings.max_steps * settings.accumulation
    for epoch in _epochs(settings, rows, layout):
        left = settings.epochs - len(epochs)
        if (wanted is None and left <= 0) or (wanted is not None and len(batches) >= wanted):
            break
        asked = settings.epochs * len(epoch) if wanted is None else wanted
        if asked > _MOST_PLANNED:
            raise RunError(
                f"training.token_budget: {asked:,.0f} batches would be planned before the first step, and "
                f"{_MOST_PLANNED:,} can be. Set training.epochs or training.max_steps lower, or a larger budget."
            )
        epochs.append(epoch)
        batches += epoch if wanted is not None or left >= 1 else epoch[: math.ceil(left * len(epoch))]
    steps = settings.max_steps or math.ceil(len(batches) / settings.accumulation)
    batches = batches[: steps * settings.accumulation]
    before_last = sum(map(len, epochs[:-1]))
    return TrainingPlan(
        layout=layout,
        steps=steps,
        steps_per_epoch=math.ceil(len(epochs[0]) / settings.accumulation),
        batches=tuple(batches),
        first_epoch=epochs[0],
        epochs=len(epochs) - 1 + (len(batches) - before_last) / len(epochs[-1]),
    )


def _epochs(settings: TrainingRecipe, rows: TrainingRows, layout: LayoutChoice) -> Iterator[BatchPlan]:
    """Each epoch's batches within the token budget."""
    for epoch in count():
        members = rows.mixture.epoch(settings.seed, epoch) if rows.mixture else range(len(rows.rows))
        plan = plan_batches(
            [rows.rows[row] for row in members],
            seed=settings.seed,
            epoch=epoch,
            token_budget=settings.token_budget,
            layout=layout.used,
            group_prefixes=settings.group_prefixes,
        )
        yield tuple(tuple(members[place] for place in batch) for batch in plan)
