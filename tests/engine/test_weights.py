"""The forms in which an engine keeps the base's weights."""

import pytest
from tests.engine.adapters import llama

from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams
from manytune.errors import ConfigError


def test_an_unknown_form_is_refused(tokenizer):
    with pytest.raises(
        ConfigError, match="weights='int2': expected one of reordered, plain, bf16, int8, int4"
    ):
        Engine(llama(), tokenizer, EngineOptions(weights="int2"))


def test_the_former_name_is_refused_with_the_new_one(tokenizer):
    with pytest.raises(ConfigError, match="weights='packed': 'packed' is called 'reordered' now"):
        Engine(llama(), tokenizer, EngineOptions(weights="packed"))


def test_the_engine_answers_with_eight_bits(tokenizer):
    engine = Engine(llama(), tokenizer, EngineOptions(weights="int8"))
    plain = Engine(llama(), tokenizer, EngineOptions(weights="plain"))
    request = Request("a", (5, 6, 7), SamplingParams(max_new_tokens=1, ignore_eos=True, logprobs=3))
    one, other = (each.generate([request])[0].logprobs[0] for each in (engine, plain))
    assert one.logprob == pytest.approx(other.logprob, abs=0.3) and one.logprob != other.logprob
