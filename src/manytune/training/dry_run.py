"""What a training would take, without training: counted where it can be, timed on a few batches where it can't.

Each batch's required FLOPs are counted; three batches, at the quantiles 1/6, 3/6 and 5/6, are run forward and backward,
and the others take time in proportion to their FLOPs. The largest batch is run once for the peak of the memory. No
weight changes: the optimizer is timed on copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from manytune.data.encoding.encoded import Encoded
from manytune.model.accounting import ExpertCounts, count_experts, count_parameters
from manytune.training.batches import AnyBatch, TokenCounts
from manytune.training.batches.batch import base_model
from manytune.training.data_summary import describe_data
from manytune.training.inputs import attach_method, read_inputs
from manytune.training.loop.arguments import check_device
from manytune.training.loop.counters import Counters
from manytune.training.loop.optimizer import freeze_first_factors
from manytune.training.loop.rows import TrainingRows
from manytune.training.loop.train import peak_memory
from manytune.training.precision import describe, precision
from manytune.training.recipe import Recipe, TrainingRecipe
from manytune.training.speed.chunked_cross_entropy import loss_sum
from manytune.training.speed.frozen_layers import (
    CacheSize,
    FrozenLayers,
    LowerLayers,
    cache_frozen_layers,
    every_layer_runs,
)
from manytune.training.speed.layout_choice import LayoutChoice, batch_builder, choose_layout, prepared
from manytune.training.speed.required_flops import ModelSize
from manytune.training.speed.timing import forward_backward_seconds, seconds_of
from manytune.training.starting_adapter import with_its_method
from manytune.training.training_plan import TrainingPlan, first_epoch, plan_training

_TIMED = (1 / 6, 3 / 6, 5 / 6)
_OPTIMIZER_SAMPLE = 1 << 23  # numbers that the optimizer is timed on, if more are trained

Rows = Sequence[Encoded]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a training would take.

    Attributes:
        trainable_parameters: Numbers that would be trained.
        all_parameters: Numbers of the model with what is attached to it.
        experts: How much of a mixture's experts would be adapted; None for a model without any.
        train_rows: Rows to learn from.
        rows_per_epoch: How many of them an epoch holds; with several tasks it may be another number.
        dtype: What it computes with, as a clause.
        layout: The batches' layout, and why not as asked if so.
        cache: What `training.cache_frozen` would keep; None without it.
        epoch: Tokens of an epoch.
        counted_batches: How many of its batches were counted for that.
        steps: Optimizer steps.
        seconds: Expected time of steps and validations, without loading and checkpoints.
        peak_memory: Expected, in bytes: as in a training's result.
        basis: What time and memory rest on, as a clause.
    """

    trainable_parameters: int
    all_parameters: int
    experts: ExpertCounts | None
    train_rows: int
    rows_per_epoch: int
    dtype: str
    layout: LayoutChoice
    cache: CacheSize | None
    epoch: TokenCounts
    counted_batches: int
    steps: int
    seconds: float
    peak_memory: int
    basis: str

    @property
    def padding_share(self) -> float:
        """Share of a padded epoch's tokens that are pad tokens."""
        return 1 - self.epoch.tokens_in / self.epoch.tokens_padded

    def to_dict(self) -> dict[str, Any]:
        """What `manytune train --dry-run --json` prints."""
        shares = {"padding_share": self.padding_share, "shared_share": self.epoch.saved_by_sharing}
        return {**asdict(self), **shares}


def estimate(recipe: Recipe, *, notify: Callable[[str], None] | None = None) -> Estimate:
    """Estimate a recipe's training. Writes nothing and trains nothing.

    Args:
        recipe: The recipe; its run directory isn't looked at.
        notify: Receives a line about each stage.

    Raises:
        RunError: The device isn't there, or `training.cache_frozen` can't be.
        DataError: A row or a file can't be used.
        StoreError: The base can't be loaded.
    """
    check_device(recipe.training)
    recipe = with_its_method(recipe)
    inputs = read_inputs(recipe, notify=notify)
    describe_data(notify or (lambda _: None), inputs.data, leaks=len(inputs.splits.leaks))
    return estimate_training(attach_method(inputs), inputs.rows, inputs.recipe.training)


def estimate_training(
    model: nn.Module, rows: TrainingRows, settings: TrainingRecipe, *, most_counted: int = 400
) -> Estimate:
    """Estimate what `train_model` would take with the same arguments. No weight changes.

    Args:
        model: As for `train_model`.
        rows: The same.
        settings: The same.
        most_counted: How many batches of an epoch are counted; a larger epoch is counted by that many, evenly spaced.
    """
    with precision(model, settings):
        return _estimate(model, rows, settings, most_counted)


def _estimate(model: nn.Module, rows: TrainingRows, settings: TrainingRecipe, most_counted: int) -> Estimate:
    freeze_first_factors(model, settings)
    layout = choose_layout(model, settings.batching)
    plan = plan_training(settings, rows, layout=layout)
    epoch = [rows.sequences(batch) for batch in first_epoch(plan, settings, rows)]
    counted = epoch[:: -(-len(epoch) // most_counted)]
    build = partial(batch_builder(model, layout), pad_id=rows.pad_id)
    counters = [Counters.of(build(batch)) for batch in counted]
    summed = sum(counters, Counters())

    timer = _Timer(model, settings, build)
    with prepared(model, layout):
        times, frozen = _time(timer, rows, counted, counters, caches=settings.cache_frozen)
        largest = max(range(len(counted)), key=lambda index: counters[index].tokens.tokens_computed)
        timer.step(counted[largest])
    peak = peak_memory() + timer.optimizer_bytes + (frozen.size.bytes if frozen else 0)
    trainable, total = count_parameters(model)
    return Estimate(
        trainable_parameters=trainable,
        all_parameters=total,
        experts=count_experts(model),
        train_rows=len(rows.rows),
        rows_per_epoch=rows.rows_per_epoch,
        dtype=describe(settings),
        layout=layout,
        cache=frozen.size if frozen else None,
        epoch=_scaled(summed.tokens, len(epoch) / len(counted)),
        counted_batches=len(counted),
        steps=plan.steps,
        seconds=_total_seconds(plan, settings, times, batches_per_epoch=len(epoch)),
        peak_memory=peak,
        basis=f"{len(_TIMED)} batches that were run on this machine without a step of the optimizer, and the largest "
        f"of {len(counted):,} for memory"
        + (", all without training.compile" if settings.compile else "")
        + (", without the answers that training.validation scores" if settings.validation else "")
        + (", with the whole base in one process" if settings.sharding != "none" else "")
        + (f", {settings.optimizer} counted as adamw" if settings.optimizer != "adamw" else ""),
    )


@dataclass(frozen=True)
class _Times:
    """Seconds of the parts that a training consists of; `later` where the lower layers' results are kept by then."""

    batch: float
    later_batch: float
    validation: float
    later_validation: float
    optimizer: float


def _time(
    timer: _Timer, rows: TrainingRows, counted: Sequence[Rows], counters: Sequence[Counters], *, caches: bool
) -> tuple[_Times, FrozenLayers | None]:
    """Run a few batches, and with the cache a second time."""
    by_cost = sorted(range(len(counted)), key=lambda index: timer.cost(counters[index]))
    timed = [by_cost[int(share * len(by_cost))] for share in _TIMED]
    timed_cost = sum(timer.cost(counters[index]) for index in timed)
    mean_cost = sum(map(timer.cost, counters)) / len(counters)

    def mean_batch(lower: LowerLayers = every_layer_runs) -> float:
        return sum(timer.step(counted[index], lower) for index in timed) / timed_cost * mean_cost

    timer.step(counted[timed[1]])  # not timed: the first one also allocates
    batch, validation = mean_batch(), timer.validation(rows.validation)
    later_batch, later_validation, frozen = batch, validation, None
    if caches:
        every_row = (*rows.train, *rows.validation)
        frozen = cache_frozen_layers(timer.model, timer.build.func, every_row, pad_id=rows.pad_id)
        for _ in range(2):  # the first time fills the cache
            later_batch, later_validation = mean_batch(frozen), timer.validation(rows.validation, frozen)
    return _Times(batch, later_batch, validation, later_validation, timer.optimizer()), frozen


def _total_seconds(
    plan: TrainingPlan, settings: TrainingRecipe, times: _Times, *, batches_per_epoch: int
) -> float:
    batches: float = plan.steps * settings.accumulation
    if settings.max_steps is None:
        batches = len(plan.batches) if plan.batches else settings.epochs * batches_per_epoch
    first = min(batches, batches_per_epoch)
    later_validations = -(-plan.steps // (settings.eval_every or plan.steps_per_epoch))
    return (
        first * times.batch
        + (batches - first) * times.later_batch
        + plan.steps * times.optimizer
        + times.validation
        + later_validations * times.later_validation
    )


class _Timer:
    """Runs batches and says how long they took."""

    def __init__(self, model: nn.Module, settings: TrainingRecipe, build: partial[AnyBatch]) -> None:
        cuda = torch.cuda.is_available() and settings.device != "cpu"
        self.model = model.to("cuda" if cuda else "cpu")
        self.build = build
        self._size = ModelSize.of(model)
        self._batch_size = settings.batch_size
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.train()
        if settings.gradient_checkpointing:
            base_model(model).gradient_checkpointing_enable({"use_reentrant": False})

    @property
    def optimizer_bytes(self) -> int:
        """AdamW's two moments."""
        return sum(2 * parameter.numel() * parameter.element_size() for parameter in self._trained)

    def cost(self, counters: Counters) -> int:
        """What a batch's time is in proportion to: its FLOPs, or its tokens if these can't be counted."""
        if self._size is None:
            return counters.tokens.tokens_computed
        return self._size.training_flops(counters)

    def step(self, rows: Rows, lower: LowerLayers = every_layer_runs) -> float:
        """Seconds of a forward and a backward pass; the gradients are gone afterwards."""
        return forward_backward_seconds(self.model, self.build(rows), self._trained, lower=lower)

    @torch.no_grad()
    def validation(self, rows: Rows, lower: LowerLayers = every_layer_runs) -> float:
        """Seconds of one validation, from its middle batch; zero without rows."""
        if not rows:
            return 0.0
        size = self._batch_size
        ordered = sorted(rows, key=lambda sequence: len(sequence.input_ids))
        batches = [self.build(ordered[start : start + size]) for start in range(0, len(ordered), size)]
        middle = batches[len(batches) // 2].to(self._trained[0].device)

        def run() -> None:
            with lower(middle):
                loss_sum(self.model, middle)

        costs = [self.cost(Counters.of(batch)) for batch in batches]
        return seconds_of(run) * sum(costs) / costs[len(batches) // 2]

    def optimizer(self) -> float:
        """Seconds of one step of AdamW, timed on copies of what is trained."""
        copies: list[nn.Parameter] = []
        copied = 0
        for parameter in self._trained:
            if copies and copied + parameter.numel() > _OPTIMIZER_SAMPLE:
                continue
            copies.append(nn.Parameter(parameter.detach().clone()))
            copies[-1].grad = torch.ones_like(parameter)
            copied += parameter.numel()
        optimizer = torch.optim.AdamW(copies, lr=1e-4, fused=True)
        optimizer.step()  # not timed: it makes the moments

        def run() -> None:
            nn.utils.clip_grad_norm_(copies, 1.0)
            optimizer.step()

        return seconds_of(run) * sum(parameter.numel() for parameter in self._trained) / copied


def _scaled(counts: TokenCounts, factor: float) -> TokenCounts:
    return TokenCounts(**{name: round(count * factor) for name, count in asdict(counts).items()})
