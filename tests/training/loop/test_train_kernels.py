"""A training says what the C++ kernels computed in it, not only that they are there."""

from __future__ import annotations

import pytest
from tests.kernels.machine import needs_compiler
from tests.training.tiny_run import as_rows, lora, sequences, settings

from manytune.training.loop.train import train_model

pytestmark = needs_compiler


@pytest.mark.parametrize(
    ("name", "dropout", "expected"),
    [
        ("lora", 0.0, "C++: LoRA"),  # the tiny model's heads are too small for attention's kernel
        ("lora", 0.2, "C++, for nothing here"),  # dropout isn't the kernel's
        ("full", 0.0, "C++, for nothing here"),
    ],
)
def test_a_result_says_what_the_kernels_computed(name: str, dropout: float, expected: str) -> None:
    once = settings(max_steps=1, warmup=0.0)
    train_model(lora(), as_rows(sequences(4)), once)  # what this one used doesn't count
    result = train_model(lora(name=name, dropout=dropout), as_rows(sequences(4)), once)
    assert result.kernels == expected


def test_in_bfloat16_the_kernels_have_no_part() -> None:
    model = lora().bfloat16()
    result = train_model(model, as_rows(sequences(4)), settings(max_steps=1, warmup=0.0))
    assert result.kernels is None
