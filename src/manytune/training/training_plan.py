"""How many steps a training takes, and which rows each of its batches holds if a budget of tokens decides that."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from torch import nn

from manytune.data.encode import Encoded
from manytune.data.mixing import Mixture
from manytune.training.batches.grouping import Plan, plan_batches
from manytune.training.recipe import TrainingRecipe
from manytune.training.speed.layout_choice import choose_layout


@dataclass(frozen=True)
class Schedule:
    """The course of a training, known before it begins.

    Attributes:
        steps: Optimizer steps of the whole training.
        steps_per_epoch: Optimizer steps of one pass over the rows; with a token budget, of the first.
        batches: With `token_budget`, every batch of the training: indices of rows. None if each has `batch_size` rows.
        epochs: Passes over the rows, as a fraction.
    """

    steps: int
    steps_per_epoch: int
    batches: Plan | None
    epochs: float


def schedule_of(
    settings: TrainingRecipe, train: Sequence[Encoded], mixture: Mixture | None, *, layout: str
) -> Schedule:
    """Plan a training.

    Args:
        settings: The recipe's training section.
        train: The rows.
        mixture: Which of them an epoch holds; None for all.
        layout: What the batches will be laid out as: it decides how many tokens the model computes.

    Raises:
        DataError: One row alone exceeds the token budget; names the row.
    """
    if settings.token_budget is not None:
        return _within_budget(settings, train, mixture, layout)
    rows = mixture.rows_per_epoch if mixture else len(train)
    batches = math.ceil(rows / settings.batch_size)
    per_epoch = math.ceil(batches / settings.accumulation)
    steps = settings.max_steps or math.ceil(settings.epochs * per_epoch)
    return Schedule(steps, per_epoch, None, steps / per_epoch)


def total_steps(
    model: nn.Module, settings: TrainingRecipe, train: Sequence[Encoded], mixture: Mixture | None
) -> int:
    """Optimizer steps of a training that isn't set up yet; the model, which decides the layout, may lack its method."""
    # Whether a layout suits a model takes a trial of it, and only a budget depends on that.
    layout = (
        settings.batching if settings.token_budget is None else choose_layout(model, settings.batching).used
    )
    return schedule_of(settings, train, mixture, layout=layout).steps


def _within_budget(
    settings: TrainingRecipe, train: Sequence[Encoded], mixture: Mixture | None, layout: str
) -> Schedule:
    batches: list[tuple[int, ...]] = []
    sizes: list[int] = []
    wanted = None if settings.max_steps is None else settings.max_steps * settings.accumulation
    for epoch in _epochs(settings, train, mixture, layout):
        left = settings.epochs - len(sizes)
        if (wanted is None and left <= 0) or (wanted is not None and len(batches) >= wanted):
            break
        sizes.append(len(epoch))
        batches += epoch if wanted is not None or left >= 1 else epoch[: math.ceil(left * len(epoch))]
    steps = settings.max_steps or math.ceil(len(batches) / settings.accumulation)
    batches = batches[: steps * settings.accumulation]
    before_last = sum(sizes[:-1])
    return Schedule(
        steps,
        math.ceil(sizes[0] / settings.accumulation),
        tuple(batches),
        len(sizes) - 1 + (len(batches) - before_last) / sizes[-1],
    )


def _epochs(
    settings: TrainingRecipe, train: Sequence[Encoded], mixture: Mixture | None, layout: str
) -> Iterator[Plan]:
    for epoch in count():
        rows = mixture.epoch(settings.seed, epoch) if mixture else range(len(train))
        plan = plan_batches(
            [train[row] for row in rows],
            seed=settings.seed,
            epoch=epoch,
            token_budget=settings.token_budget,
            layout=layout,
            group_prefixes=settings.group_prefixes,
        )
        yield tuple(tuple(rows[place] for place in batch) for batch in plan)
