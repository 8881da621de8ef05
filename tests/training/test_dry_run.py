"""What `manytune train --dry-run` says is what a training then does."""

from __future__ import annotations

import pytest
from tests.training.tiny_run import as_rows, lora, sequences, settings, weights_digest

from manytune.data.encoding.encoded import Encoded
from manytune.training.batches import BUILDERS
from manytune.training.dry_run import estimate_training
from manytune.training.loop.train import train_model


@pytest.mark.parametrize("layout", BUILDERS)
def test_the_counts_are_those_of_the_training(layout: str) -> None:
    rows = sequences(10)
    usual = settings(batching=layout, epochs=1.0)
    estimated = estimate_training(lora(), as_rows(rows, rows[:3]), usual)
    result = train_model(lora(), as_rows(rows, rows[:3]), usual)
    assert estimated.epoch == result.counters.tokens
    assert estimated.steps == result.steps == 4
    assert (estimated.trainable_parameters, estimated.all_parameters) == (
        result.trainable_parameters,
        result.all_parameters,
    )
    assert estimated.layout == result.layout
    longest = max(len(row.input_ids) - 1 for row in rows)
    assert 0 < estimated.padding_share < 1 - min(len(row.input_ids) - 1 for row in rows) / longest


def test_no_weight_changes_and_no_gradient_is_left() -> None:
    model = lora(dropout=0.1)
    before = weights_digest(model)
    estimate_training(model, as_rows(sequences(10), sequences(3)), settings())
    assert weights_digest(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_rows_share_is_found() -> None:
    rows = [Encoded((3, 4, 5, 6, 7, 8, 9, 10 + n), (4, 0), "x", n) for n in range(12)]
    estimated = estimate_training(lora(), as_rows(rows), settings(batch_size=4))
    # 4 rows of 9 inputs: 7 are common, 2 each one's own
    assert estimated.epoch.saved_by_sharing == pytest.approx(1 - (7 + 4 * 2) / (4 * 9))
    assert estimated.padding_share == 0


def test_a_long_epoch_is_counted_by_a_sample() -> None:
    rows = [Encoded((3, 4, 5), (6, 0), "x", n) for n in range(40)]
    estimated = estimate_training(
        lora(), as_rows(rows), settings(batch_size=2, batching="padded"), most_counted=5
    )
    assert estimated.counted_batches == 5
    assert estimated.epoch.tokens_in == 40 * 4


def test_time_grows_with_the_steps_and_memory_holds_the_optimizers_state() -> None:
    rows = sequences(12)
    short, long = (
        estimate_training(lora(), as_rows(rows), settings(max_steps=steps)) for steps in (100, 10_000)
    )
    assert long.seconds > 10 * short.seconds > 0
    assert short.peak_memory > 2 * 4 * short.trainable_parameters


def test_a_model_that_a_layout_does_not_suit_is_estimated_padded() -> None:
    model = lora()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    estimated = estimate_training(model, as_rows(sequences(5)), settings())
    assert estimated.layout.used == "padded"
    assert estimated.layout.reason is not None
