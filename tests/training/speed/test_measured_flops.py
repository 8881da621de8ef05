"""The FLOP/s of a machine's own matrix products."""

from __future__ import annotations

import pytest
import torch
from tests.training.tiny_run import as_rows, lora, sequences, settings

from manytune.kernels import products
from manytune.training.loop.train import train_model
from manytune.training.speed.measured_flops import matmul_flops_per_second


def test_the_machine_is_not_measured_after_a_short_run_unasked() -> None:
    result = train_model(lora(), as_rows(sequences(4)), settings(max_steps=2))
    assert result.matmul_flops_per_second is None
    assert result.mfu is None


@pytest.mark.skipif(not products._AVAILABLE, reason="this torch has no oneDNN")
def test_the_products_measured_are_made_as_a_step_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    multiply = products._onednn
    monkeypatch.setattr(products, "_onednn", lambda *given: made.append(0) or multiply(*given))
    matmul_flops_per_second(lora().float(), rows=100, seconds=0.01)
    assert made


def test_measuring_changes_no_weight_and_draws_no_random_number() -> None:
    model = lora()
    before = [parameter.clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    assert matmul_flops_per_second(model, rows=100, seconds=0.01) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))
