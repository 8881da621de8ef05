"""A row of any mixed batch is what transformers generates with its one adapter attached."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engine.adapters import END
from tests.engine.arrivals import Arrival
from tests.engine.arrivals import check as check_arrivals
from tests.engine.arrivals import run as run_arrivals
from tests.engine.mixtures import BUILDERS, LIMIT, PROMPTS, check, params, run, world_of
from tests.random_cases import cases, some

from manytune.engine.request import Request


@pytest.fixture(scope="module", params=list(BUILDERS))
def world(request):
    return world_of(request.param)


@pytest.fixture(scope="module")
def llama_world():
    return world_of("llama")


def test_adapters_change_the_answers(world):
    answers = {tuple(world.expected[name, 2][0]) for name in (None, *world.adapters)}
    assert len(answers) > len(world.adapters) / 2


def test_each_adapter_alone_answers_as_transformers_does(world, tokenizer):
    engine = world.engine(tokenizer)
    for name in (None, *world.adapters):
        outputs = run(engine, [Request("one", PROMPTS[2], params(), name)])
        check(world, name, 2, outputs["one"])


ALL_AT_ONCE = {"prefill_chunk": 4, "max_batch": 3, "kv_budget_tokens": 300}


@pytest.mark.parametrize(
    "options",
    some(
        [{}, {"prefill_chunk": 4}, {"max_batch": 3}, {"kv_budget_tokens": 300}, ALL_AT_ONCE], {}, ALL_AT_ONCE
    ),
)
def test_every_adapter_in_one_batch_answers_as_alone(world, tokenizer, options):
    engine = world.engine(tokenizer, **options)
    asked = [(name, number) for number in range(len(PROMPTS)) for name in (None, *world.adapters)]
    requests = [Request(f"{name}/{number}", PROMPTS[number], params(), name) for name, number in asked]
    outputs = run(engine, requests)
    for name, number in asked:
        check(world, name, number, outputs[f"{name}/{number}"])


@settings(max_examples=cases(6), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_arrivals_lengths_and_cancellations_change_no_answer(world, tokenizer, data):
    engine = world.engine(
        tokenizer,
        max_batch=data.draw(st.integers(1, 8)),
        prefill_chunk=data.draw(st.sampled_from([1, 3, 16, 512])),
        prefix_cache_tokens=data.draw(st.sampled_from([0, 64, 4096])),
        max_adapters=data.draw(st.integers(1, 8)),
    )
    systems = st.sampled_from([None, *world.adapters])
    arrivals = data.draw(
        st.lists(
            st.tuples(systems, st.integers(0, len(PROMPTS) - 1), st.integers(1, LIMIT), st.integers(0, 12)),
            min_size=1,
            max_size=14,
        )
    )
    names = st.sampled_from([str(place) for place in range(len(arrivals))])
    cancelled = data.draw(st.dictionaries(names, st.integers(0, 20), max_size=4))
    requests = [
        Arrival(Request(str(place), PROMPTS[number], params(limit), name, priority=place % 3), at)
        for place, (name, number, limit, at) in enumerate(arrivals)
    ]

    def whole(place, outputs):
        name, number, limit, _ = arrivals[int(place)]
        check(world, name, number, outputs, limit)

    outputs = run_arrivals(engine, requests, cancelled)
    check_arrivals(outputs, cancelled, lambda place: world.expected[arrivals[int(place)][:2]][0], whole)


def test_the_model_is_untouched_between_steps(llama_world, tokenizer):
    model = llama_world.model
    ids = torch.tensor([PROMPTS[2]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
    engine = llama_world.engine(tokenizer)
    for name in llama_world.adapters:
        engine.submit(Request(name, PROMPTS[3], params(), name))
    while engine.busy:
        engine.step()
        with torch.no_grad():
            assert torch.equal(model(input_ids=ids).logits, before)


def test_generate_gives_whole_answers_in_order(llama_world, tokenizer):
    engine = llama_world.engine(tokenizer)
    requests = [
        Request(name, PROMPTS[1], replace(params(), logprobs=None), name) for name in llama_world.adapters
    ]
    answers = engine.generate(requests)
    assert [one.request_id for one in answers] == list(llama_world.adapters)
    for one in answers:
        tokens = llama_world.expected[one.request_id, 1][0]
        assert one.finish_reason == ("stop" if tokens[-1] == END else "length")
        tokens = tokens[:-1] if tokens[-1] == END else tokens
        assert one.token_ids == tuple(tokens)
        assert one.text == tokenizer.decode(tokens)
