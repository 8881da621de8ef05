"""Weights in 8 and 4 bits are rounded as their formulas say."""

import pytest
import torch
from tests.engine.adapters import llama
from transformers import LlamaConfig, LlamaForCausalLM

from manytune.engine.quantized import GROUP, int4_weight, int8_weight, quantized_layers
from manytune.errors import ConfigError


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
