"""`adapter_names=` over mixtures of experts: each sample its own adapter on experts and router."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.methods.tiny_moe import DEEPSEEK, MIXTURES, QWEN3, Mixture
from torch import Tensor
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

import manytune
from manytune import AdapterError, LoraConfig, PeftModel
from manytune.methods.tuners.terms import TermsError

IDS = torch.randint(3, 40, (5, 7), generator=torch.Generator().manual_seed(2))
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
NAMES = ("__base__", "default", "down", "router", "linear")


@cache
def model_of(mixture: Mixture) -> PeftModel:
    """Adapters that share some of what they adapt; in float64, with experts computed by transformers' own loop."""
    base = mixture.build().double()
    base.set_experts_implementation("eager")  # type: ignore[operator]
    everything = {"target_modules": ["o_proj"], "target_parameters": [*EXPERTS, mixture.router]}
    model = manytune.get_peft_model(base, LoraConfig(r=2, **everything))
    router = {"target_modules": [], "target_parameters": [mixture.router]}
    model.add_adapter("down", LoraConfig(r=3, target_modules=[], target_parameters=["experts.down_proj"]))
    model.add_adapter("router", LoraConfig(r=2, lora_alpha=6, **router))
    model.add_adapter("linear", LoraConfig(r=2, target_modules=["o_proj"]))
    generator = torch.Generator().manual_seed(9)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model.eval()


def alone(model: PeftModel, name: str, ids: Tensor) -> Tensor:
    if name == "__base__":
        with model.disable_adapter():
            return model(input_ids=ids).logits
    model.set_adapter(name)
    return model(input_ids=ids).logits


@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
@settings(max_examples=10, deadline=None)
@given(names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=5))
@torch.no_grad()
def test_each_sample_gets_what_its_own_adapter_gives_alone(mixture: Mixture, names: list[str]) -> None:
    model, ids = model_of(mixture), IDS[: len(names)]
    mixed = model(input_ids=ids, adapter_names=names).logits
    separate = [alone(model, name, ids[row : row + 1]) for row, name in enumerate(names)]
    # DeepSeek's router computes in float32 whatever it is given.
    tolerance = 1e-5 if mixture is DEEPSEEK else 1e-9
    torch.testing.assert_close(mixed, torch.cat(separate), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
def test_generation_gives_each_sample_the_tokens_of_its_own_adapter(mixture: Mixture) -> None:
    model = model_of(mixture)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    mixed = model.generate(
        input_ids=IDS, attention_mask=torch.ones_like(IDS), adapter_names=list(NAMES), **options
    )
    for row, name in enumerate(NAMES):
        one = IDS[row : row + 1]
        model.set_adapter("default" if name == "__base__" else name)
        own = {"adapter_names": ["__base__"]} if name == "__base__" else {}
        expected = model.generate(input_ids=one, attention_mask=torch.ones_like(one), **own, **options)
        assert mixed[row].tolist() == expected[0].tolist(), name
    assert len({tuple(row[-6:].tolist()) for row in mixed}) > 2


def test_gradients_for_experts_adapters_are_refused_with_the_way_out() -> None:
    config = LoraConfig(r=2, target_modules=[], target_parameters=EXPERTS)
    model = manytune.get_peft_model(QWEN3.build(), config).eval()
    with pytest.raises(AdapterError, match=r"mixed forward alone.*Call it under torch.no_grad\(\)"):
        model(input_ids=IDS[:2], adapter_names=["default", "__base__"])
    with torch.no_grad():
        model(input_ids=IDS[:2], adapter_names=["default", "__base__"])


def test_experts_that_are_not_grouped_are_refused_since_they_see_some_tokens_alone() -> None:
    config = SwitchTransformersConfig(
        **{"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_heads": 4, "num_experts": 2},
        **{"num_layers": 2, "num_decoder_layers": 2, "decoder_start_token_id": 0},
        **{"num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2},
    )
    options = LoraConfig(r=2, target_modules=["wi"])
    model = manytune.get_peft_model(SwitchTransformersForConditionalGeneration(config), options).eval()
    with (
        torch.no_grad(),
        pytest.raises(AdapterError, match=r"expert_\d\.wi: it sees only the tokens that are routed"),
    ):
        model(input_ids=IDS[:2], decoder_input_ids=IDS[:2, :1], adapter_names=["default", "__base__"])
    with pytest.raises(TermsError, match=r"expert_\d\.wi', which sees only the tokens that are routed"):
        model.tuner.live_terms("default")
