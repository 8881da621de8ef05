"""A row of any mixed batch of an encoder-decoder is what transformers generates with its one adapter attached."""

from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engine.adapters import END, VOCABULARY, attached, in_memory
from tests.engine.arrivals import Arrival
from tests.engine.arrivals import check as check_arrivals
from tests.engine.arrivals import run as run_arrivals
from tests.engine.encoder_decoder.bases import BASES, configs_for
from tests.reference.single_adapter import answer

from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams

LIMIT = 6
GENERATOR = torch.Generator().manual_seed(11)
PROMPTS = [
    tuple(torch.randint(2, VOCABULARY, (length,), generator=GENERATOR).tolist()) for length in (3, 17, 8, 1)
]


class World:
    """A base, its adapters in memory, and what transformers answers with each of them alone."""

    def __init__(self, family):
        build = BASES[family]
        self.model = build()
        self.systems = {None: build()}
        self.adapters = {}
        for seed, (name, config) in enumerate(configs_for(self.model).items()):
            self.systems[name] = attached(build(), config, seed=seed)
            self.adapters[name] = in_memory(self.systems[name])
        self.expected = cache(
            lambda name, number, limit: answer(
                self.systems[name], PROMPTS[number], max_new_tokens=limit, end_id=END
            )
        )

    def engine(self, tokenizer, **options):
        engine = Engine(self.model, tokenizer, EngineOptions(**options))
        for name, adapter in self.adapters.items():
            engine.add_adapter(name, adapter)
        return engine

    def check(self, name, number, outputs, limit=LIMIT):
        tokens, logprobs = self.expected(name, number, limit)
        assert [output.token_id for output in outputs] == tokens, (name, number)
        for place, output in enumerate(outputs):
            found = torch.empty(VOCABULARY)
            for token, value in output.logprobs.top:
                found[token] = value
            torch.testing.assert_close(found, logprobs[place], atol=1e-5, rtol=0)


world_of = cache(World)


def params(limit=LIMIT):
    return SamplingParams(max_new_tokens=limit, logprobs=VOCABULARY)


@pytest.mark.parametrize("family", BASES)
def test_every_adapter_in_one_batch_answers_as_alone(family, tokenizer):
    world = world_of(family)
    engine = world.engine(tokenizer, max_batch=24, prefill_chunk=40)
    asked = {str(place): (name, place % 3) for place, name in enumerate([None, *world.adapters])}
    outputs = {place: [] for place in asked}
    for place, (name, number) in asked.items():
        engine.submit(Request(place, PROMPTS[number], params(), name))
    while engine.busy:
        for output in engine.step():
            outputs[output.request_id].append(output)
        engine.check_integrity()
    for place, (name, number) in asked.items():
        world.check(name, number, outputs[place])
    for name, number in asked.values():
        plain, own = (world.expected(one, number, LIMIT)[1][1] for one in (None, name))
        assert name is None or float((plain - own).abs().max()) > 1e-3, f"{name} changes nothing"


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_arrivals_lengths_and_cancellations_change_no_answer(tokenizer, data):
    world = world_of(data.draw(st.sampled_from(list(BASES))))
    engine = world.engine(
        tokenizer,
        max_batch=data.draw(st.integers(1, 8)),
        prefill_chunk=data.draw(st.sampled_from([1, 10, 512])),
        prefix_cache_tokens=data.draw(st.sampled_from([0, 20, 4096])),
        max_adapters=data.draw(st.integers(1, 8)),
    )
    arrivals = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from([None, *world.adapters]),
                st.integers(0, len(PROMPTS) - 1),
                st.sampled_from([1, 4, LIMIT]),
                st.integers(0, 8),
            ),
            min_size=1,
            max_size=10,
        )
    )
    names = st.sampled_from([str(place) for place in range(len(arrivals))])
    cancelled = data.draw(st.dictionaries(names, st.integers(0, 10), max_size=3))
    requests = [
        Arrival(Request(str(place), PROMPTS[number], params(limit), name, priority=place % 3), at)
        for place, (name, number, limit, at) in enumerate(arrivals)
    ]

    def whole(place, outputs):
        name, number, limit, _ = arrivals[int(place)]
        world.check(name, number, outputs, limit)

    outputs = run_arrivals(engine, requests, cancelled)
    check_arrivals(outputs, cancelled, lambda place: world.expected(*arrivals[int(place)][:3])[0], whole)
