"""The engine over mixtures of experts: requests of many adapters on experts and routers, each answering as alone."""

from __future__ import annotations

import copy
from functools import cache
from itertools import cycle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.adapters import in_memory
from tests.engine.systems import PROMPTS
from tests.methods.tiny_moe import MIXTRAL, QWEN3
from transformers import GenerationConfig

from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams
from manytune.methods.lora.config import LoraConfig
from manytune.model.attach import get_peft_model

LIMIT = 8


def configs():
    """Options of adapters that differ in what they adapt, and in their ranks."""
    router, down, both = ["gate.weight"], ["experts.down_proj"], ["experts.gate_up_proj", "experts.down_proj"]
    modules = {"everything": ["q_proj"], "linear": ["q_proj"]}
    parameters = {
        "everything": [*both, *router],
        "experts": both,
        "down": down,
        "router": router,
        "linear": None,
    }
    return {
        name: LoraConfig(
            r=2 + rank, target_modules=modules.get(name, []), target_parameters=own, task_type="CAUSAL_LM"
        )
        for rank, (name, own) in enumerate(parameters.items())
    }


@cache
def base_of(mixture):
    model = mixture.build()
    model.config.eos_token_id = model.generation_config.eos_token_id = 1
    return model


@cache
def attached(mixture, name):
    model = get_peft_model(copy.deepcopy(base_of(mixture)), configs()[name])
    generator = torch.Generator().manual_seed(sorted(configs()).index(name))
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@cache
def alone(mixture, name, prompt):
    """What transformers writes with the one adapter attached."""
    model = base_of(mixture) if name is None else attached(mixture, name)
    config = GenerationConfig(do_sample=False, max_new_tokens=LIMIT, pad_token_id=0, eos_token_id=1)
    inputs = torch.tensor([prompt])
    with torch.no_grad():
        found = model.generate(
            input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=config
        )
    tokens = found[0, len(prompt) :].tolist()
    return tuple(tokens[: tokens.index(1)] if 1 in tokens else tokens)


@cache
def saved(mixture, name):
    return in_memory(attached(mixture, name))


def engine_of(mixture, tokenizer, **options):
    engine = Engine(
        base_of(mixture), tokenizer, EngineOptions(**{"weights": "plain", **options}), end_ids=[1]
    )
    for name in configs():
        engine.add_adapter(name, saved(mixture, name))
    return engine


def answers(engine, asked):
    requests = [
        Request(f"{number}", prompt, SamplingParams(max_new_tokens=LIMIT), name)
        for number, (name, prompt) in enumerate(asked)
    ]
    return [tuple(token for token in one.token_ids if token != 1) for one in engine.generate(requests)]


@pytest.mark.parametrize("mixture", [QWEN3, MIXTRAL], ids=str)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_mixed_requests_are_answered_with_the_tokens_of_their_own_adapters(mixture, data, tokenizer):
    names = st.sampled_from([None, *configs()])
    asked = data.draw(st.lists(st.tuples(names, st.sampled_from(PROMPTS)), min_size=1, max_size=8))
    engine = engine_of(mixture, tokenizer, max_batch=data.draw(st.integers(1, 8)))
    assert answers(engine, asked) == [alone(mixture, *one) for one in asked]
    engine.check_integrity()


def test_adapters_answer_differently_and_prompts_in_chunks_answer_the_same(tokenizer):
    asked = list(zip([None, *configs(), *configs()], cycle(PROMPTS), strict=False))
    engine = engine_of(QWEN3, tokenizer, max_batch=4, prefill_chunk=3)
    found = answers(engine, asked)
    assert found == [alone(QWEN3, *one) for one in asked]
    assert len(set(found)) > 6


def test_weights_of_experts_leave_the_slots_when_their_requests_end(tokenizer):
    engine = engine_of(QWEN3, tokenizer)
    answers(engine, [("experts", PROMPTS[0]), ("router", PROMPTS[1])])
    assert engine._slots.held == 0 and engine._slots.nbytes == 0
