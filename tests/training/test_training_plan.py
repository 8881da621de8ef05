"""The course of a training: steps and epochs, and the batches of a token budget."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from tests.reference import plain_training_loop
from tests.training.tiny_run import as_rows, lora, sequences, settings

from manytune.data.encoding.encoded import Encoded
from manytune.errors import DataError, RunError
from manytune.training.batches import BUILDERS, builder
from manytune.training.dry_run import estimate_training
from manytune.training.loop.train import train_model
from manytune.training.recipe import TrainingRecipe
from manytune.training.speed.layout_choice import LayoutChoice
from manytune.training.training_plan import TrainingPlan, plan_training

ROWS = sequences(23)
BUDGET = 40  # three or four rows


def plan_of(chosen: TrainingRecipe, layout: str) -> TrainingPlan:
    return plan_training(chosen, as_rows(ROWS), layout=LayoutChoice(layout, layout, None))


def plan(*, layout: str = "shared-prefix", **changes: Any) -> TrainingPlan:
    return plan_of(settings(**{"token_budget": BUDGET, **changes}), layout)


@pytest.mark.parametrize(
    ("changes", "steps", "per_epoch", "epochs"),
    [
        ({"batch_size": 3, "epochs": 2.0}, 16, 8, 2.0),
        ({"batch_size": 3, "epochs": 1.5, "accumulation": 3}, 5, 3, 5 / 3),  # a step isn't cut
        ({"batch_size": 23, "max_steps": 7}, 7, 1, 7.0),
    ],
)
def test_a_fixed_number_of_rows(changes: dict[str, Any], steps: int, per_epoch: int, epochs: float) -> None:
    found = plan_of(settings(**changes), "padded")
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
    chosen: dict[str, Any] = {
        "accumulation": 2,
        "warmup": 0.0,
        "lr_scheduler": "constant",
        "max_grad_norm": 0.5,
    }
    model, twin = lora(), lora()
    usual = settings(token_budget=BUDGET, **chosen)
    result = train_model(model, as_rows(ROWS, ROWS[:4]), usual)
    planned = plan_of(usual, "shared-prefix")
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
    estimated = estimate_training(lora(), as_rows(ROWS, ROWS[:3]), usual)
    result = train_model(lora(), as_rows(ROWS, ROWS[:3]), usual)
    assert estimated.epoch == result.counters.tokens
    assert estimated.steps == result.steps
    short = settings(token_budget=BUDGET, max_steps=2)  # less than an epoch
    assert estimate_training(lora(), as_rows(ROWS, ROWS[:3]), short).epoch == estimated.epoch


def test_a_model_that_a_layout_does_not_suit_has_padded_batches_within_the_budget() -> None:
    """Dropout inside the base would give rows that are shared one mask."""
    usual = settings(token_budget=BUDGET, epochs=1.0)
    model = lora()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    result = train_model(model, as_rows(ROWS), usual)
    assert result.layout.used == "padded"
    assert result.steps == plan_of(usual, "padded").steps
    assert result.steps > plan_of(usual, "shared-prefix").steps


@pytest.mark.parametrize("changes", [{"max_steps": 10**9}, {"epochs": 1e6, "token_budget": 20}])
def test_more_batches_than_can_be_planned_are_refused_at_once(changes: dict[str, Any]) -> None:
    with pytest.raises(
        RunError, match=r"training.token_budget: .* batches would be planned before the first step"
    ):
        plan_training(
            settings(**{"token_budget": BUDGET, **changes}),
            as_rows(sequences(200)),
            layout=LayoutChoice("padded", "padded", None),
        )
