"""Constrained and free requests share batches; a constraint goes with every other option of a request."""

import json
import random
import re

import pytest
import torch
from tests.chat_templates import tokenizer_of
from tests.engine.constraints.tokens import END, SIZE, compiled
from transformers import LlamaConfig, LlamaForCausalLM

from manytune.engine.constraints.grammar import Grammar, regex_grammar, schema_grammar
from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams
from manytune.errors import RequestError

PROMPT = tuple(range(20, 29))
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 999}, "b": {"enum": ["x", "the"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=END,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def engine(model) -> Engine:
    return Engine(model, tokenizer_of(None), EngineOptions(weights="plain", max_batch=8))


def ask(name: str, grammar: Grammar | None, *, prompt=PROMPT, **params) -> Request:
    constraint = None if grammar is None else compiled(grammar)
    return Request(name, prompt, SamplingParams(**{"max_new_tokens": 120, **params}), constraint=constraint)


def test_answers_are_valid_and_end_where_nothing_can_follow(engine) -> None:
    requests = [ask(str(seed), schema_grammar(SCHEMA), temperature=1.0, seed=seed) for seed in range(12)]
    for answer in engine.generate(requests):
        assert answer.finish_reason == "stop"
        value = json.loads(answer.text)
        assert set(value) == {"a", "b"} and 0 <= value["a"] <= 999 and value["b"] in ("x", "the")
        assert answer.usage.completion_tokens == len(answer.token_ids)  # no token after the last brace


def test_a_constrained_answer_in_any_batch_is_the_one_it_has_alone(model) -> None:
    draw = random.Random(0)
    grammars = [None, schema_grammar(SCHEMA), regex_grammar("[a-z]{1,30}"), regex_grammar("(the |a )+end")]
    requests = []
    for number in range(16):
        prompt = tuple(draw.choices(range(20, 300), k=draw.randrange(1, 40)))
        options = {
            "temperature": draw.choice([0.0, 0.8]),
            "seed": number,
            "max_new_tokens": draw.randrange(1, 60),
        }
        if draw.random() < 0.3:
            options |= {"repetition_penalty": 1.3, "top_k": 20, "top_p": 0.9, "logit_bias": {40: 5.0}}
        requests.append(ask(str(number), draw.choice(grammars), prompt=prompt, **options))
    options = EngineOptions(weights="plain", max_batch=5, prefill_chunk=16)
    together = Engine(model, tokenizer_of(None), options).generate(requests)
    alone = [Engine(model, tokenizer_of(None), options).generate([one])[0] for one in requests]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    assert [one.finish_reason for one in together] == [one.finish_reason for one in alone]


def test_greedy_takes_the_likeliest_allowed_token_and_log_probabilities_are_the_models(engine, model) -> None:
    (answer,) = engine.generate([ask("1", regex_grammar("[xyz]{3}"), logprobs=2)])
    assert re.fullmatch("[xyz]{3}", answer.text)
    tokenizer, ids = tokenizer_of(None), list(PROMPT)
    for token, found in zip(answer.token_ids, answer.logprobs, strict=True):
        with torch.no_grad():
            log = model(torch.tensor([ids])).logits[0, -1].log_softmax(0)
        among = [one for one in range(len(tokenizer)) if tokenizer.decode([one]) in ("x", "y", "z")]
        assert token == max(among, key=lambda one: float(log[one]))
        assert found.logprob == pytest.approx(float(log[token]), abs=1e-4)
        assert found.top[0][0] == int(log.argmax()) and token not in dict(found.top)
        ids.append(token)


def test_an_answer_that_is_cut_off_is_the_beginning_of_a_valid_one(engine) -> None:
    whole, cut = (
        engine.generate([ask("1", schema_grammar(SCHEMA), temperature=1.0, seed=5, max_new_tokens=limit)])[0]
        for limit in (120, 6)
    )
    assert cut.finish_reason == "length" and len(cut.token_ids) == 6
    assert whole.text.startswith(cut.text) and whole.finish_reason == "stop"


def test_an_answer_that_is_complete_at_its_limit_has_stopped(engine) -> None:
    (answer,) = engine.generate([ask("1", regex_grammar("[xyz]{3}"), max_new_tokens=3)])
    assert (answer.finish_reason, len(answer.text)) == ("stop", 3)


def test_end_tokens_are_allowed_only_where_the_answer_is_complete(engine) -> None:
    eager = {END: 100.0}
    (answer,) = engine.generate([ask("1", regex_grammar("[xyz]{2,9}"), logit_bias=eager)])
    assert len(answer.text) == 2 and answer.finish_reason == "stop"
    (longer,) = engine.generate([ask("1", regex_grammar("[xyz]{2,9}"), logit_bias=eager, ignore_eos=True)])
    assert len(longer.text) == 9 and longer.finish_reason == "stop"


def test_stop_strings_and_stop_tokens_end_constrained_answers(engine) -> None:
    grammar = regex_grammar("(abc)+")
    (answer,) = engine.generate([ask("1", grammar, stop=("cab",))])
    assert (answer.text, answer.finish_reason) == ("ab", "stop")
    letter = tokenizer_of(None).convert_tokens_to_ids("c")
    (answer,) = engine.generate([ask("1", grammar, stop_token_ids=(letter,))])
    assert (answer.text, answer.finish_reason) == ("ab", "stop")


def test_a_stop_token_ends_a_free_answer_and_is_no_part_of_it(engine) -> None:
    (free,) = engine.generate([ask("1", None, max_new_tokens=20)])
    token = free.token_ids[10]
    before = free.token_ids[: free.token_ids.index(token)]
    for ignore_eos in (False, True):
        request = ask("1", None, max_new_tokens=20, stop_token_ids=(token,), ignore_eos=ignore_eos)
        (answer,) = engine.generate([request])
        assert (answer.token_ids, answer.finish_reason) == (before, "stop")


def test_silent_tokens_have_no_text_whole_and_streamed(engine) -> None:
    (free,) = engine.generate([ask("1", None, max_new_tokens=20)])
    silent = frozenset(free.token_ids[3:6])
    request = Request("1", PROMPT, SamplingParams(20), silent_ids=silent)
    (whole,) = engine.generate([request])
    assert whole.token_ids == free.token_ids
    kept = [token for token in free.token_ids if token not in silent]
    assert whole.text == tokenizer_of(None).decode(kept)
    engine.submit(request)
    outputs = [output for _ in range(20) for output in engine.step()]
    assert "".join(output.text for output in outputs) == whole.text


def test_an_answer_that_its_grammar_does_not_let_go_on_ends_with_that_reason(engine) -> None:
    class Stuck:
        may_end = must_end = False

        def allowed(self) -> torch.Tensor:
            return torch.zeros(SIZE, dtype=torch.bool)

        def accept(self, token: int) -> None:
            raise AssertionError

    class Constraint:
        def start(self) -> Stuck:
            return Stuck()

    requests = [
        Request(str(place), PROMPT, SamplingParams(4, temperature=heat), constraint=Constraint())
        for place, heat in enumerate((0.0, 1.0))
    ]
    *found, free = engine.generate([*requests, ask("3", None, max_new_tokens=4)])
    assert [(one.finish_reason, one.text) for one in found] == [("constraint", "")] * 2
    assert free.finish_reason == "length"
    assert not engine.busy


def test_an_unknown_stop_token_is_refused(engine) -> None:
    with pytest.raises(RequestError, match=f"stop_token_ids contains token {SIZE}"):
        engine.submit(ask("1", None, stop_token_ids=(SIZE,)))
