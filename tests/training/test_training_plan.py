"""The course of a training: steps and epochs, and the batches of a token budget."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from tests.reference import plain_training_loop
from tests.training.loop.test_trainer import settings
from tests.training.tiny_run import lora, sequences

from manytune.data.encode import Encoded
from manytune.errors import DataError
from manytune.training.batches import BUILDERS, builder
from manytune.training.dry_run import estimate_training
from manytune.training.loop.train import train_model
from manytune.training.training_plan import Schedule, schedule_of

ROWS = sequences(23)
BUDGET = 40  # three or four rows


def plan(**changes: Any) -> Schedule:
    layout = changes.pop("layout", "shared-prefix")
    return schedule_of(settings(**{"token_budget": BUDGET, **changes}), ROWS, None, layout=layout)


@pytest.mark.parametrize(
    ("changes", "steps", "per_epoch", "epochs"),
    [
        ({"batch_size": 3, "epochs": 2.0}, 16, 8, 2.0),
        ({"batch_size": 3, "epochs": 1.5, "accumulation": 3}, 5, 3, 5 / 3),  # a step isn't cut
        ({"batch_size": 23, "max_steps": 7}, 7, 1, 7.0),
    ],
)
def test_a_fixed_number_of_rows(changes: dict[str, Any], steps: int, per_epoch: int, epochs: float) -> None:
    found = schedule_of(settings(**changes), ROWS, None, layout="padded")
    assert (found.steps, found.steps_per_epoch, found.epochs) == (steps, per_epoch, pytest.approx(epochs))
    assert found.batches is None


@pytest.mark.parametrize("layout", BUILDERS)
@pytest.mark.parametrize("grouped", [False, True])
def test_a_token_budget_bounds_every_batch_and_each_row_comes_once_an_epoch(
    layout: str, grouped: bool
) -> None:
    found = plan(epochs=3.0, layout=layout, group_prefixes=grouped)
    assert found.batches is not None
    assert Counter(row for batch in found.batches for row in batch) == dict.fromkeys(range(23), 3)
    first = found.batches[: found.steps_per_epoch]
    assert sorted(row for batch in first for row in batch) == list(range(23))
    computed = [
        builder(layout)([ROWS[row] for row in batch], pad_id=0).tokens_computed for batch in found.batches
    ]
    assert max(computed) <= BUDGET
    assert sum(computed) / len(computed) > BUDGET / 2
    assert found.steps == len(found.batches) and found.epochs == 3.0


def test_epochs_differ() -> None:
    found = plan(epochs=2.0)
    assert found.batches is not None
    assert found.batches[: found.steps_per_epoch] != found.batches[found.steps_per_epoch :]


def test_a_part_of_an_epoch_is_a_part_of_its_batches() -> None:
    whole, half = plan(epochs=2.0), plan(epochs=1.5)
    assert whole.batches is not None and half.batches is not None
    assert half.batches == whole.batches[: len(half.batches)]
    first = whole.steps_per_epoch
    assert len(half.batches) - first == -(-(len(whole.batches) - first) // 2)
    assert half.epochs == pytest.approx(1.5, abs=0.1)


@pytest.mark.parametrize("steps", [1, 4, 40])
def test_a_number_of_steps_takes_as_many_epochs_as_it_needs(steps: int) -> None:
    found = plan(max_steps=steps, accumulation=2)
    assert found.batches is not None
    assert found.steps == steps and len(found.batches) == 2 * steps
    assert found.epochs == pytest.approx(steps / found.steps_per_epoch, rel=0.2)


def test_a_row_that_exceeds_the_budget_alone_is_named() -> None:
    longest = max(ROWS, key=lambda row: len(row.input_ids))
    with pytest.raises(DataError, match=r"rows\.jsonl:") as raised:
        plan(token_budget=len(longest.input_ids) - 2)
    assert "budget" in str(raised.value)


def test_training_takes_the_planned_batches_like_a_textbook_loop() -> None:
    chosen: dict[str, Any] = {"accumulation": 2, "warmup": 0.0, "schedule": "constant", "max_grad_norm": 0.5}
    model, twin = lora(), lora()
    usual = settings(token_budget=BUDGET, **chosen)
    result = train_model(model, ROWS, ROWS[:4], usual, pad_id=0)
    planned = schedule_of(usual, ROWS, None, layout="shared-prefix")
    assert planned.batches is not None
    windows: list[list[Encoded]] = []
    for start in range(0, len(planned.batches), 2):
        windows.append([ROWS[row] for batch in planned.batches[start : start + 2] for row in batch])
    losses = plain_training_loop.train(twin, windows, learning_rates=[0.01] * len(windows), max_grad_norm=0.5)
    assert result.steps == len(windows) == planned.steps
    assert [report.loss for report in result.step_reports] == pytest.approx(losses, rel=1e-4)
    assert result.step_reports[-1].epoch == pytest.approx(2.0)
    assert result.tokens == 2 * sum(len(row.input_ids) - 1 for row in ROWS)
    validated = [report.step for report in result.validation_reports]
    assert validated[:2] == [0, planned.steps_per_epoch] and validated[-1] == planned.steps


def test_the_dry_run_counts_the_same_batches() -> None:
    usual = settings(token_budget=BUDGET, epochs=1.0)
    estimated = estimate_training(lora(), ROWS, ROWS[:3], usual, pad_id=0)
    result = train_model(lora(), ROWS, ROWS[:3], usual, pad_id=0)
    assert estimated.epoch == result.tally.counts
    assert estimated.steps == result.steps
    short = settings(token_budget=BUDGET, max_steps=2)  # less than an epoch
    assert estimate_training(lora(), ROWS, ROWS[:3], short, pad_id=0).epoch == estimated.epoch


def test_a_model_that_a_layout_does_not_suit_has_padded_batches_within_the_budget() -> None:
    """Dropout inside the base would give rows that are shared one mask."""
    usual = settings(token_budget=BUDGET, epochs=1.0)
    model = lora()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    result = train_model(model, ROWS, [], usual, pad_id=0)
    assert result.layout.used == "padded"
    assert result.steps == schedule_of(usual, ROWS, None, layout="padded").steps
    assert result.steps > schedule_of(usual, ROWS, None, layout="shared-prefix").steps
