"""Biases that an adapter trains in place, next to the base alone."""

from __future__ import annotations

import pytest
import torch
from tests.methods.tiny_models import GPT2
from torch import Tensor

from manytune import LoraConfig, PeftModel, get_peft_model


def logits(model: PeftModel, **options: object) -> Tensor:
    inputs = {"input_ids": GPT2.inputs()["input_ids"]}
    with torch.no_grad():
        found: Tensor = model(**inputs, **options).logits
    return found


def trained(bias: str) -> PeftModel:
    model = get_peft_model(
        GPT2.build().double().eval(), LoraConfig(r=2, target_modules=["c_attn"], bias=bias)
    )
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(
                0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            )
    return model


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_the_base_alone_has_its_own_biases_and_the_adapter_its_trained_ones_afterwards(bias: str) -> None:
    model = trained(bias)
    adapted = logits(model)
    with model.using("__base__"), torch.no_grad():
        inputs = {"input_ids": GPT2.inputs()["input_ids"]}
        assert torch.equal(logits(model), GPT2.build().double().eval()(**inputs).logits)
    assert torch.equal(logits(model), adapted)


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_in_a_mixed_batch_an_adapters_biases_are_its_own_rows_alone(bias: str) -> None:
    model = trained(bias)
    adapted = logits(model)
    with model.using("__base__"):
        base = logits(model)
    mixed = logits(model, adapter_names=["default", "__base__", "default"])
    torch.testing.assert_close(mixed[[0, 2]], adapted[[0, 2]], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mixed[1], base[1], rtol=1e-9, atol=1e-9)
