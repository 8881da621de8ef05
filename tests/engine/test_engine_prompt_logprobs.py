"""Log probabilities of prompts are transformers' own, whatever else is in the batch, cached or read in chunks."""

from functools import cache

import pytest
import torch
from tests.engine.adapters import (
    TASK,
    VOCABULARY,
    attached,
    configs_for,
    gpt2,
    in_memory,
    llama,
    of_all_tokens,
)
from tests.random_cases import some

from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams
from manytune.errors import RequestError
from manytune.methods.lora.config import LoraConfig
from manytune.methods.prompt_tuning.model import PromptTuningConfig

GENERATOR = torch.Generator().manual_seed(3)
SHARED = tuple(torch.randint(2, VOCABULARY, (34,), generator=GENERATOR).tolist())
PROMPTS = [(5,), SHARED, (*SHARED, 7, 8, 9), (*SHARED[:33], 9), (9, 10, 11, 12, 13)]
SCORED = SamplingParams(max_new_tokens=0, prompt_logprobs=VOCABULARY)


@cache
def world():
    """A base, adapters of every kind, and what transformers gives with each of them attached."""
    base = llama()
    configs = {**configs_for(base), "prompt": PromptTuningConfig(num_virtual_tokens=3, task_type=TASK)}
    systems = {
        name: attached(llama(), config, seed=seed) for seed, (name, config) in enumerate(configs.items())
    }
    return base, {name: in_memory(system) for name, system in systems.items()}, {None: llama(), **systems}


def engine_of(tokenizer, **options):
    base, adapters, _ = world()
    engine = Engine(base, tokenizer, EngineOptions(**options))
    for name, adapter in adapters.items():
        engine.add_adapter(name, adapter)
    return engine


@torch.no_grad()
def expected(system, prompt):
    """(tokens - 1, vocabulary)"""
    logits = system(input_ids=torch.tensor([prompt])).logits[0]
    return logits[-len(prompt) :].log_softmax(1)[:-1]  # virtual tokens are at the left


@cache
def reference_of(name, prompt):
    return expected(world()[2][name], prompt)


def check(name, prompt, given):
    reference = reference_of(name, prompt)
    assert [one.token_id for one in given] == list(prompt[1:])
    found = torch.stack([of_all_tokens(one.top) for one in given]) if given else torch.empty(0, VOCABULARY)
    torch.testing.assert_close(found, reference, atol=1e-5, rtol=1e-5)
    for one in given:
        assert one.logprob == dict(one.top)[one.token_id]


@pytest.mark.parametrize(
    "options",
    some(
        [
            {},
            {"prefill_chunk": 5},
            {"prefix_cache_tokens": 512},
            {"prefix_cache_tokens": 512, "prefill_chunk": 7},
        ],
        {},
        {"prefix_cache_tokens": 512, "prefill_chunk": 7},
    ),
    ids=str,
)
def test_prompts_of_all_adapters_in_one_batch_have_transformers_log_probabilities(tokenizer, options):
    engine = engine_of(tokenizer, **options)
    asked = [(name, prompt) for prompt in PROMPTS for name in world()[2]]
    for _ in range(
        2 if "prefix_cache_tokens" in options else 1
    ):  # the second time, prefixes are in the cache
        completions = engine.generate(
            Request(str(at), prompt, SCORED, name) for at, (name, prompt) in enumerate(asked)
        )
        for (name, prompt), one in zip(asked, completions, strict=True):
            check(name, prompt, one.prompt_logprobs)
            assert (one.token_ids, one.text, one.finish_reason) == ((), "", "length")
            assert one.usage.cached_tokens == one.usage.completion_tokens == 0
    assert engine.counters().completion_tokens == 0
    engine.check_integrity()


def test_scored_prompts_run_next_to_answers_and_change_none(tokenizer):
    engine = engine_of(tokenizer, prefix_cache_tokens=512, prefill_chunk=6)
    plain, free = (
        SamplingParams(max_new_tokens=6),
        SamplingParams(max_new_tokens=6, prompt_logprobs=VOCABULARY),
    )
    alone = {prompt: engine.generate([Request("a", prompt, plain)])[0] for prompt in PROMPTS}
    asked = [(prompt, params) for prompt in PROMPTS for params in (plain, free, SCORED)]
    completions = engine.generate(
        Request(str(at), prompt, params) for at, (prompt, params) in enumerate(asked)
    )
    for (prompt, params), one in zip(asked, completions, strict=True):
        if params is plain:
            assert one.prompt_logprobs is None
        else:
            check(None, prompt, one.prompt_logprobs)
        assert one.text == ("" if params is SCORED else alone[prompt].text)


def test_they_come_with_the_first_event_and_no_other(tokenizer):
    engine = engine_of(tokenizer)
    engine.submit(Request("a", SHARED, SamplingParams(max_new_tokens=3, prompt_logprobs=1, ignore_eos=True)))
    outputs = []
    while engine.busy:
        outputs += engine.step()
    assert [output.prompt_logprobs is not None for output in outputs] == [True, False, False]


def test_gpt2_and_its_adapter_too(tokenizer):
    config = LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, task_type=TASK)
    system = attached(gpt2(), config, seed=1)
    engine = Engine(gpt2(), tokenizer)
    engine.add_adapter("one", in_memory(system))
    (scored,) = engine.generate([Request("a", SHARED, SCORED, "one")])
    found = torch.tensor([one.logprob for one in scored.prompt_logprobs])
    reference = expected(system, SHARED).gather(1, torch.tensor(SHARED[1:])[:, None])[:, 0]
    torch.testing.assert_close(found, reference, atol=1e-5, rtol=1e-5)


def test_a_prompt_whose_logits_are_not_finite_fails(tokenizer):
    model = llama()
    engine = Engine(model, tokenizer, EngineOptions(weights="plain"))
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = float("nan")
    (given,) = engine.generate([Request("a", (4, 5, 6), SCORED)])
    assert (given.finish_reason, given.prompt_logprobs) == ("failed", None)


def test_an_answer_of_no_tokens_needs_a_prompt_to_score():
    with pytest.raises(
        RequestError, match="max_new_tokens=0: expected at least 1, or 0 with prompt_logprobs"
    ):
        SamplingParams(max_new_tokens=0)
    with pytest.raises(RequestError, match="prompt_logprobs=-1: expected 0 or more, or None"):
        SamplingParams(prompt_logprobs=-1)
