"""What a training would take, without training: counted where it can be, timed on a few batches where it can't.

Each batch's arithmetic is counted; three batches, at the quantiles 1/6, 3/6 and 5/6, are run forward and backward, and
the others take time in proportion to their arithmetic. The largest batch is run once for the peak of the memory. No
weight changes: the optimizer is timed on copies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from manytune.data.dataset import encode_splits, read_splits
from manytune.data.encode import Encoded
from manytune.data.mixing import Mixture
from manytune.model.accounting import count_parameters
from manytune.model.attach import get_peft_model
from manytune.store.base import load_base
from manytune.training.batches import Batch, Seq2SeqBatch, TokenCounts
from manytune.training.batches.batch import base_model
from manytune.training.data_summary import describe_data
from manytune.training.loop.counters import Tally
from manytune.training.loop.samplers import order_of
from manytune.training.loop.train import check_device, peak_memory
from manytune.training.recipe import Recipe, TrainingRecipe
from manytune.training.speed.chunked_cross_entropy import loss_sum
from manytune.training.speed.frozen_layers import CacheSize, LowerLayers, cache_frozen_layers, computed
from manytune.training.speed.layout_choice import LayoutChoice, batch_builder, choose_layout, prepared
from manytune.training.speed.operations import ModelSize
from manytune.training.training_plan import schedule_of, total_steps

_COUNTED_BATCHES = 400  # of an epoch; a larger one is counted by that many, evenly spaced
_TIMED = (1 / 6, 3 / 6, 5 / 6)
_OPTIMIZER_SAMPLE = 1 << 23  # numbers that the optimizer is timed on, if more are trained


@dataclass(frozen=True)
class Estimate:
    """What a training would take.

    Attributes:
        trainable_parameters: Numbers that would be trained.
        all_parameters: Numbers of the model with what is attached to it.
        train_rows: Rows to learn from.
        rows_per_epoch: How many of them an epoch holds; with several tasks it may be another number.
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
    train_rows: int
    rows_per_epoch: int
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
    say = notify or (lambda _: None)
    settings = recipe.training
    check_device(settings)
    splits = read_splits(recipe.data)
    base = load_base(recipe.base, dtype=settings.dtype, notify=say)
    data = encode_splits(splits, recipe.data, base.tokenizer, encoder_decoder=base.is_encoder_decoder)
    describe_data(say, data, leaks=len(splits.leaks))
    set_seed(settings.seed)
    task_type = "SEQ_2_SEQ_LM" if base.is_encoder_decoder else "CAUSAL_LM"
    steps = total_steps(base.model, settings, data.train, data.mixture)
    config = recipe.method.peft_config(task_type, steps=steps)
    model = get_peft_model(base.model, config)
    pad_id = base.tokenizer.pad_token_id
    return estimate_training(
        model,
        data.train,
        data.validation,
        settings,
        pad_id=pad_id if isinstance(pad_id, int) else 0,
        mixture=data.mixture,
    )


def estimate_training(
    model: nn.Module,
    train: Sequence[Encoded],
    validation: Sequence[Encoded],
    settings: TrainingRecipe,
    *,
    pad_id: int,
    mixture: Mixture | None = None,
) -> Estimate:
    """Estimate what `train_model` would take with the same arguments. No weight changes."""
    layout = choose_layout(model, settings.batching)
    build = partial(batch_builder(model, layout), pad_id=pad_id)
    rows = mixture.rows_per_epoch if mixture else len(train)
    schedule = schedule_of(settings, train, mixture, layout=layout.used)
    first = _first_epoch(settings, train, mixture, layout.used)
    batches = [[train[row] for row in batch] for batch in first]
    stride = -(-len(batches) // _COUNTED_BATCHES)
    counted = batches[::stride]
    tallies = [Tally.of(build(rows_of)) for rows_of in counted]
    summed = sum(tallies, Tally())

    work = _Work(model, settings)
    by_cost = sorted(range(len(counted)), key=lambda index: work.cost(tallies[index]))
    timed = [by_cost[int(share * len(by_cost))] for share in _TIMED]
    with prepared(model, layout):
        work.step(build(counted[timed[1]]))  # not timed: the first one also allocates
        spent = [work.step(build(counted[index])) for index in timed]
        validating = work.validation_seconds(validation, build) if validation else 0.0
        repeated, validating_again = spent, validating
        frozen = None
        if settings.cache_frozen:
            every_row = (*train, *validation)
            frozen = cache_frozen_layers(model, batch_builder(model, layout), every_row, pad_id=pad_id)
            for _ in range(2):  # the first time fills the cache
                repeated = [work.step(build(counted[index]), frozen) for index in timed]
                if validation:
                    validating_again = work.validation_seconds(validation, build, frozen)
        largest = max(by_cost, key=lambda index: tallies[index].counts.tokens_computed)
        work.step(build(counted[largest]))
    peak = peak_memory() + work.optimizer_bytes + (frozen.size.bytes if frozen else 0)
    timed_cost = sum(work.cost(tallies[index]) for index in timed)
    mean_cost = sum(map(work.cost, tallies)) / len(tallies)
    batch_seconds, repeated_seconds = (sum(times) / timed_cost * mean_cost for times in (spent, repeated))

    passes: float = schedule.steps * settings.accumulation
    if settings.max_steps is None:
        passes = len(schedule.batches) if schedule.batches else settings.epochs * len(batches)
    every = settings.eval_every or schedule.steps_per_epoch
    later_validations = -(-schedule.steps // every)
    first_passes = min(passes, len(batches))
    seconds = first_passes * batch_seconds + (passes - first_passes) * repeated_seconds
    seconds += schedule.steps * work.optimizer_seconds() + validating + later_validations * validating_again
    trainable, total = count_parameters(model)
    return Estimate(
        trainable,
        total,
        len(train),
        rows,
        layout,
        frozen.size if frozen else None,
        _scaled(summed.counts, len(batches) / len(counted)),
        len(counted),
        schedule.steps,
        seconds,
        peak,
        f"{len(timed)} batches that were run on this machine without a step of the optimizer, and the largest of "
        f"{len(counted):,} for memory" + (", all without training.compile" if settings.compile else ""),
    )


def _first_epoch(
    settings: TrainingRecipe, train: Sequence[Encoded], mixture: Mixture | None, layout: str
) -> Sequence[Sequence[int]]:
    """The batches of one pass over the rows, whether or not the training goes so far."""
    one_pass = settings.model_copy(update={"epochs": 1.0, "max_steps": None})
    planned = schedule_of(one_pass, train, mixture, layout=layout).batches
    if planned is not None:
        return planned
    size = settings.batch_size
    order = list(
        order_of(
            train,
            batch_size=size,
            seed=settings.seed,
            group_prefixes=settings.group_prefixes,
            mixture=mixture,
        )
    )
    return [order[start : start + size] for start in range(0, len(order), size)]


class _Work:
    """Runs batches and says how long they took."""

    def __init__(self, model: nn.Module, settings: TrainingRecipe) -> None:
        cuda = torch.cuda.is_available() and settings.device != "cpu"
        self._device = torch.device("cuda" if cuda else "cpu")
        self._model = model.to(self._device)
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

    def cost(self, tally: Tally) -> int:
        """What a batch's time is in proportion to: its operations, or its tokens if these can't be counted."""
        return tally.counts.tokens_computed if self._size is None else self._size.training(tally)

    def step(self, batch: Batch | Seq2SeqBatch, lower: LowerLayers = computed) -> float:
        """Seconds of a forward and a backward pass; the gradients are gone afterwards."""
        started = time.perf_counter()
        batch = batch.to(self._device)
        with lower(batch):
            loss = loss_sum(self._model, batch) / batch.targets
        loss.backward()
        self._wait()
        seconds = time.perf_counter() - started
        for parameter in self._trained:
            parameter.grad = None
        return seconds

    @torch.no_grad()
    def validation_seconds(
        self,
        sequences: Sequence[Encoded],
        build: Callable[[Sequence[Encoded]], Batch | Seq2SeqBatch],
        lower: LowerLayers = computed,
    ) -> float:
        """Seconds of one validation, from its middle batch."""
        size = self._batch_size
        ordered = sorted(sequences, key=lambda sequence: len(sequence.input_ids))
        batches = [build(ordered[start : start + size]) for start in range(0, len(ordered), size)]
        middle = batches[len(batches) // 2].to(self._device)
        started = time.perf_counter()
        with lower(middle):
            loss_sum(self._model, middle).item()
        seconds = time.perf_counter() - started
        costs = [self.cost(Tally.of(batch)) for batch in batches]
        return seconds * sum(costs) / costs[len(batches) // 2]

    def optimizer_seconds(self) -> float:
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
        optimizer.step()
        started = time.perf_counter()
        nn.utils.clip_grad_norm_(copies, 1.0)
        optimizer.step()
        self._wait()
        seconds = time.perf_counter() - started
        return seconds * sum(parameter.numel() for parameter in self._trained) / copied

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def _scaled(counts: TokenCounts, factor: float) -> TokenCounts:
    return TokenCounts(**{name: round(count * factor) for name, count in asdict(counts).items()})
