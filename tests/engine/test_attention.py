"""Windows and soft caps of scores: answers and log probabilities are transformers' own."""

import pytest
import torch
from tests.engine.adapters import END, LLAMA, VOCABULARY, llama
from tests.reference.single_adapter import answer
from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

from manytune.engine.attention import NAME
from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams

PROMPTS = [
    tuple(2 + (7 * place + start) % 40 for place in range(length)) for start, length in ((0, 17), (3, 4))
]


def mistral():
    torch.manual_seed(6)
    return MistralForCausalLM(MistralConfig(**LLAMA, sliding_window=6, initializer_range=0.2)).eval()


def gemma2():
    """Every other layer has a window; scores are capped at 3, which is well within their range."""
    torch.manual_seed(7)
    config = Gemma2Config(
        **LLAMA, head_dim=8, sliding_window=6, attn_logit_softcapping=3.0, initializer_range=0.2
    )
    return Gemma2ForCausalLM(config).eval()


@pytest.mark.parametrize("build", [mistral, gemma2])
@pytest.mark.parametrize("prefill_chunk", [4, 512])
def test_windows_and_soft_caps_are_those_of_transformers(tokenizer, build, prefill_chunk):
    engine = Engine(build(), tokenizer, EngineOptions(prefill_chunk=prefill_chunk))
    params = SamplingParams(max_new_tokens=10, logprobs=VOCABULARY)
    completions = engine.generate([Request(str(n), prompt, params) for n, prompt in enumerate(PROMPTS)])
    for completion, prompt in zip(completions, PROMPTS, strict=True):
        tokens, logprobs = answer(build(), prompt, max_new_tokens=10, end_id=END)
        assert [found.token_id for found in completion.logprobs] == tokens
        for position, found in enumerate(completion.logprobs):
            values = torch.empty(VOCABULARY)
            for token, value in found.top:
                values[token] = value
            torch.testing.assert_close(values, logprobs[position], atol=1e-5, rtol=0)


def test_a_call_outside_of_the_engine_is_an_error():
    model = llama()
    model.set_attn_implementation(NAME)
    with pytest.raises(
        RuntimeError, match=r"for the engine's forwards only; LlamaAttention called it with no"
    ):
        model(torch.tensor([[5, 6, END]]))
