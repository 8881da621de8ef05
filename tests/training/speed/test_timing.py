"""A timed forward and backward pass leaves nothing behind."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

from tests.training.tiny_run import lora, sequences, weights_digest

from manytune.training.batches import padded
from manytune.training.speed.timing import forward_backward_seconds


def test_a_pass_takes_time_and_leaves_neither_gradients_nor_other_weights() -> None:
    model = lora()
    before = weights_digest(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert forward_backward_seconds(model, padded.build(sequences(4), pad_id=0), trained) > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert weights_digest(model) == before


def test_the_forward_runs_where_the_lower_layers_may_be_skipped() -> None:
    seen: list[Any] = []

    @contextmanager
    def lower(batch: Any) -> Any:
        seen.append(batch)
        yield False

    model = lora()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    forward_backward_seconds(model, padded.build(sequences(2), pad_id=0), trained, lower=lower)
    assert [batch.tokens_in for batch in seen] == [padded.build(sequences(2), pad_id=0).tokens_in]
