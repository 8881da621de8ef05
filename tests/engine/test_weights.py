"""The forms of the base's weights: packed ones change rounding alone, 8 and 4 bits round as their formulas say."""

import pytest
import torch
from tests.engine.adapters import gpt2, llama
from tests.engine.test_static_batch import tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from manytune.engine.engine import Engine
from manytune.engine.quantized import GROUP, int4_weight, int8_weight, quantized_layers
from manytune.engine.reordered_weights import can_pack, packed_layers
from manytune.engine.request import Request, SamplingParams
from manytune.errors import ConfigError

__all__ = ["tokenizer"]


@pytest.mark.skipif(not can_pack(llama()), reason="this torch has no oneDNN")
@pytest.mark.parametrize("rows", [1, 3, 32, 70])
def test_packed_layers_compute_what_the_plain_ones_do(rows):
    model = llama()
    layers = packed_layers(model)
    assert len(layers) == 7 * 2 + 1
    # Queries, keys and values are asked in their order for one input, and by themselves for another.
    shared = torch.randn(1, rows, 32)
    with torch.inference_mode():
        for path, forward in layers.items():
            module = model.get_submodule(path)
            inputs = [torch.randn(1, rows, module.in_features)]
            inputs += [shared] if module.in_features == 32 else []
            for x in inputs:
                torch.testing.assert_close(forward(x), module(x), atol=1e-5, rtol=1e-5)


def test_layers_without_a_packed_form_stay_plain():
    assert "transformer.h.0.attn.c_attn" not in packed_layers(gpt2())
    assert not can_pack(llama().double())


def test_int8_rounds_each_weight_to_half_a_step_at_most():
    weight = torch.randn(9, 64)
    codes, scale = int8_weight(weight)
    assert codes.dtype == torch.int8 and codes.abs().amax(1).ge(126).all()
    scale = scale.float()[:, None]
    assert ((codes * scale - weight).abs() <= 0.5001 * scale).all()


def test_int4_rounds_each_weight_to_half_a_step_of_its_group():
    weight = torch.randn(6, 2 * GROUP)
    codes, pairs = int4_weight(weight)
    scale, zero = (pairs[..., place].float().t().repeat_interleave(GROUP, 1) for place in (0, 1))  # (out, in)
    assert codes.min() >= 0 and codes.max() <= 15
    # A little more at a group's ends, which its two numbers, rounded themselves, may leave outside.
    assert (((codes - 8) * scale + zero - weight).abs() <= 0.57 * scale).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_layers_multiply_with_the_rounded_weights(bits):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=48, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    layers = quantized_layers(model, bits)
    for path in ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj", "lm_head"):
        weight = model.get_submodule(path).weight.detach()
        if bits == 8 or path == "lm_head":
            codes, scale = int8_weight(weight)
            rounded = codes * scale.float()[:, None]
        else:
            codes, pairs = int4_weight(weight)
            scale, zero = (pairs[..., place].float().t().repeat_interleave(GROUP, 1) for place in (0, 1))
            rounded = (codes - 8) * scale + zero
        x = torch.randn(1, 3, weight.shape[1])
        with torch.inference_mode():
            y = layers[path](x)
        assert y.dtype == torch.float32
        # Both ends are rounded to bfloat16's eight bits.
        torch.testing.assert_close(y, x.bfloat16().float() @ rounded.t(), atol=1e-4, rtol=2**-8)


def test_four_bits_need_whole_groups():
    with pytest.raises(
        ConfigError, match=r"mlp\.down_proj has 48 inputs, which don't divide into groups of 32"
    ):
        quantized_layers(llama(), 4)


def test_an_unknown_form_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="weights='int2': expected one of packed, plain, int8, int4"):
        Engine(llama(), tokenizer, weights="int2")


def test_the_engine_answers_with_eight_bits(tokenizer):
    engine = Engine(llama(), tokenizer, weights="int8")
    plain = Engine(llama(), tokenizer, weights="plain")
    request = Request("a", (5, 6, 7), SamplingParams(max_new_tokens=1, ignore_eos=True, logprobs=3))
    one, other = (each.generate([request])[0].logprobs[0] for each in (engine, plain))
    assert one.logprob == pytest.approx(other.logprob, abs=0.3) and one.logprob != other.logprob
