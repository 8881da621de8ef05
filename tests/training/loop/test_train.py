from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.reference import plain_training_loop
from tests.training.tiny_run import as_rows, lora, sequences, settings, weights_digest

from manytune.errors import RunError
from manytune.store.run_log import StepReport, ValidationReport
from manytune.training.loop.train import train_model


def test_training_takes_the_steps_of_a_textbook_loop() -> None:
    """10 rows, 3 a batch, 2 batches a step: windows of 6 and 4 rows, the last batch of one row."""
    rows = sequences(10)
    model, twin = lora(), lora()
    result = train_model(
        model, as_rows(rows), settings(accumulation=2, warmup=0.0, lr_scheduler="linear", max_grad_norm=0.5)
    )

    windows = []
    for epoch in (0, 1):
        order = np.random.default_rng([0, epoch]).permutation(10)
        windows += [[rows[i] for i in order[:6]], [rows[i] for i in order[6:]]]
    rates = [0.01 * share for share in (1.0, 0.75, 0.5, 0.25)]  # linear decay over four steps
    losses = plain_training_loop.train(twin, windows, learning_rates=rates, max_grad_norm=0.5)

    assert [report.learning_rate for report in result.step_reports] == pytest.approx(rates, rel=1e-12)
    assert [report.loss for report in result.step_reports] == pytest.approx(losses, rel=1e-5)
    for (name, ours), (_, theirs) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        # AdamW divides by the gradient's own size, which turns rounding of tiny gradients into 1e-4 of a step.
        assert torch.allclose(ours, theirs, atol=5e-5), name


def test_the_result_counts_what_was_done() -> None:
    rows = sequences(10)
    result = train_model(lora(), as_rows(rows, rows[:4]), settings())
    assert result.steps == 8  # ceil(10 / 3) batches, twice
    assert result.tokens == 2 * sum(len(row.input_ids) - 1 for row in rows)  # the end token is a label only
    # r=2 on each of 2 layers: 4 attention projections of 16x16, 3 MLP projections of 16x32
    assert result.trainable_parameters == 2 * (4 * 2 * (16 + 16) + 3 * 2 * (16 + 32))
    assert [report.step for report in result.step_reports] == list(range(1, 9))
    assert [report.step for report in result.validation_reports] == [0, 4, 8]  # before, and after each epoch
    assert result.validation_loss == result.validation_reports[-1].validation_loss
    assert result.peak_memory > 0
    assert 0 < result.step_seconds <= result.seconds


def test_the_first_validation_loss_is_that_of_the_untrained_model_per_target_token() -> None:
    rows = sequences(7)
    model = lora()
    result = train_model(model, as_rows(rows, rows), settings(max_steps=1, learning_rate=1e-9, warmup=0.0))
    losses = plain_training_loop.train(lora(), [rows], learning_rates=[0.0], max_grad_norm=1.0)
    assert result.validation_reports[0].validation_loss == pytest.approx(losses[0], rel=1e-6)


def test_validation_happens_when_asked_and_at_the_last_step() -> None:
    rows = sequences(10)
    result = train_model(lora(), as_rows(rows, rows[:2]), settings(max_steps=5, eval_every=2))
    assert [report.step for report in result.validation_reports] == [0, 2, 4, 5]


def test_reports_arrive_in_order_while_training_goes_on() -> None:
    seen: list[StepReport | ValidationReport] = []
    train_model(
        lora(), as_rows(sequences(6), sequences(2)), settings(max_steps=2, eval_every=1), report=seen.append
    )
    kinds = [(type(event).__name__, event.step) for event in seen]
    assert kinds == [
        ("ValidationReport", 0),
        ("StepReport", 1),
        ("ValidationReport", 1),
        ("StepReport", 2),
        ("ValidationReport", 2),
    ]


@pytest.mark.parametrize("batching", ["padding-free", "shared-prefix"])
def test_every_layout_trains_to_the_same_loss(batching: str) -> None:
    rows = sequences(9)
    padded = train_model(lora(), as_rows(rows, rows[:3]), settings())
    packed = train_model(lora(), as_rows(rows, rows[:3]), settings(batching=batching))
    assert packed.validation_loss == pytest.approx(padded.validation_loss, rel=1e-4)
    assert packed.tokens == padded.tokens


def test_gradient_checkpointing_changes_no_gradient() -> None:
    rows = sequences(6)
    plain, recomputed = lora(), lora()
    train_model(plain, as_rows(rows), settings())
    train_model(recomputed, as_rows(rows), settings(gradient_checkpointing=True))
    for (name, ours), (_, theirs) in zip(
        plain.named_parameters(), recomputed.named_parameters(), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-6), name


def test_full_fine_tuning_goes_the_same_way() -> None:
    model = lora(name="full")
    before = weights_digest(model)
    result = train_model(model, as_rows(sequences(6)), settings(learning_rate=1e-3))
    assert weights_digest(model) != before
    assert result.trainable_parameters == result.all_parameters


def test_the_model_is_left_ready_to_generate() -> None:
    model: Any = lora()
    model.config.use_cache = True
    train_model(model, as_rows(sequences(6)), settings(max_steps=2))
    assert not model.training
    assert model.config.use_cache


def test_training_that_changed_nothing_is_an_error_that_says_why() -> None:
    # A rate that float32 can't tell from zero.
    with pytest.raises(RunError, match=r"training changed nothing: all 28 trainable tensors.*learning_rate"):
        train_model(lora(), as_rows(sequences(3)), settings(learning_rate=1e-60))


def test_a_model_without_trainable_parameters_is_an_error() -> None:
    with pytest.raises(RunError, match="no parameter requires a gradient"):
        train_model(lora().requires_grad_(False), as_rows(sequences(3)), settings())


@pytest.mark.parametrize("asked", ["padding-free", "shared-prefix"])
def test_a_model_that_a_layout_does_not_suit_trains_padded_and_the_run_says_why(asked: str) -> None:
    models = [lora(), lora()]
    for module in models[0].modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 1e-12  # dropout that drops nothing, so that the losses can be compared
    lines: list[str] = []
    rows = sequences(6)
    fallen_back = train_model(models[0], as_rows(rows), settings(batching=asked), notify=lines.append)
    padded = train_model(models[1], as_rows(rows), settings(batching="padded"), notify=lines.append)
    assert (fallen_back.layout.asked, fallen_back.layout.used) == (asked, "padded")
    assert lines == [
        f"batches are padded, since {asked} wouldn't be exact on this model: {fallen_back.layout.reason}"
    ]
    assert "attention_dropout = 1e-12" in (fallen_back.layout.reason or "")
    assert padded.layout.reason is None
    assert fallen_back.step_reports[0].loss == pytest.approx(padded.step_reports[0].loss, rel=1e-5)


def test_prompts_are_shared_unless_the_recipe_says_otherwise() -> None:
    result = train_model(lora(), as_rows(sequences(3)), settings(max_steps=2))
    assert (result.layout.used, result.layout.reason) == ("shared-prefix", None)
