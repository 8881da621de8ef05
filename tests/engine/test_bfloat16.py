"""Weights in bfloat16: what they compute, and where they are refused."""

import pytest
import torch
from tests.engine.adapters import llama

from manytune.engine.bfloat16 import bfloat16_layers
from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams
from manytune.errors import ConfigError


@pytest.fixture
def faster(monkeypatch):
    """As on a processor that multiplies bfloat16; this one may do so in more steps."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN multiplies no bfloat16 on this processor")
    monkeypatch.setattr("manytune.engine.bfloat16.multiplies_bfloat16", lambda: True)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_a_processor_that_would_be_slow_in_it_is_refused(tokenizer, monkeypatch, runtime):
    monkeypatch.setattr("manytune.engine.bfloat16.multiplies_bfloat16", lambda: False)
    with pytest.raises(ConfigError, match="weights='bf16': this processor has neither avx512_bf16 nor AMX"):
        Engine(llama(), tokenizer, EngineOptions(weights="bf16", runtime=runtime))


@pytest.mark.parametrize("rows", [1, 5])
def test_layers_multiply_what_is_rounded_to_bfloat16(faster, rows):
    model = llama()
    layers = bfloat16_layers(model)
    x = torch.randn(1, rows, 32)
    with torch.inference_mode():
        found = {
            path: forward(x)
            for path, forward in layers.items()
            if path.endswith(("q_proj", "v_proj", "head"))
        }
    assert len(found) > 2
    for path, y in found.items():
        expected = x.bfloat16().float() @ model.get_submodule(path).weight.bfloat16().float().t()
        assert y.dtype == torch.float32
        torch.testing.assert_close(y, expected, atol=1e-3, rtol=2**-8)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_the_engine_answers_in_bfloat16(faster, tokenizer, runtime):
    # Where OpenVINO has no bfloat16 for this processor, torch runs it, and the log says so.
    engine = Engine(llama(), tokenizer, EngineOptions(weights="bf16", runtime=runtime))
    plain = Engine(llama(), tokenizer, EngineOptions(weights="plain"))
    request = Request("a", (5, 6, 7), SamplingParams(max_new_tokens=1, ignore_eos=True, logprobs=3))
    one, other = (each.generate([request])[0].logprobs[0] for each in (engine, plain))
    assert one.logprob == pytest.approx(other.logprob, abs=0.1) and one.logprob != other.logprob


def test_float16_is_refused_with_what_to_do(faster):
    with pytest.raises(ConfigError, match=r"for a model in torch\.float16; load it with dtype bfloat16"):
        bfloat16_layers(llama().half())
