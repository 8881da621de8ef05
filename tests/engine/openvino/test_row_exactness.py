"""In OpenVINO, rounded forms included, drafts change no bit of what the base answers."""

import pytest
import torch
from tests.engine.adapters import attached, configs_for, in_memory, llama
from tests.engine.drafting import drafts_always

from manytune.engine.engine import Engine
from manytune.engine.openvino.runner import OpenVINORunner, PagedRunner
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams
from manytune.engine.speculation import Speculation

pytest.importorskip("openvino", reason="OpenVINO isn't installed; the extra `openvino` brings it")


@pytest.fixture(params=["plain", "int8", "int4"])
def engine(tokenizer, request):
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # attention with few sequences is divided among threads
    yield Engine(
        llama(), tokenizer, EngineOptions(runtime="openvino", weights=request.param, prefill_chunk=256)
    )
    torch.set_num_threads(before)


@pytest.mark.parametrize("adapters", [(), ("lora all", "lora bias", "dora", "bottleneck", "prefix tuning")])
def test_drafts_change_no_bit_of_an_answer(engine, monkeypatch, adapters):
    if adapters:
        assert engine._runner.has_exact_adapters  # a C++ compiler is a requirement of these tests
        configs = configs_for(llama())
        for seed, name in enumerate(adapters):
            engine.add_adapter(name, in_memory(attached(llama(), configs[name], seed=seed)))
    # The pattern repeats, so there are guesses; many tokens, so that some are wrong.
    prompts = [(tuple(range(2 + one, 7 + one)) * 4)[: 12 + one] for one in range(6)]
    asked = [
        Request(
            str(one),
            prompt,
            SamplingParams(40, logprobs=2, ignore_eos=True),
            (*adapters, None)[one % (len(adapters) + 1)],
        )
        for one, prompt in enumerate(prompts)
    ]
    monkeypatch.setattr(engine, "_speculation", Speculation(is_on=False))
    expected = [engine.generate([one])[0] for one in asked]
    drafts_always(engine, monkeypatch)
    for together in ([asked[0]], asked):
        found = engine.generate(together)
        assert [(one.token_ids, one.logprobs) for one in found] == [
            (one.token_ids, one.logprobs) for one in expected[: len(together)]
        ]
    assert not any(one.obstacle for one in engine._runner._known.values())  # nothing ran in torch
    counters = engine.counters()
    assert counters.drafted_tokens > counters.accepted_tokens > 10


def test_rows_that_depend_on_others_are_noticed(tokenizer, monkeypatch):
    engine = Engine(llama(), tokenizer, EngineOptions(runtime="openvino", prefill_chunk=256))
    runner = engine._runner
    assert runner.has_exact_rows()
    monkeypatch.setattr(type(runner), "_sequences", PagedRunner._sequences)  # drafts as chunks
    assert not runner.has_exact_rows()
    engine.check_integrity()


@pytest.mark.parametrize("is_exact", [True, False])
@pytest.mark.parametrize("adds_exactly", [True, False])
def test_rounded_answers_are_drafted_where_they_stay_the_same(tokenizer, monkeypatch, is_exact, adds_exactly):
    monkeypatch.setattr(OpenVINORunner, "has_exact_rows", lambda self: is_exact)
    monkeypatch.setattr(OpenVINORunner, "has_exact_adapters", adds_exactly)
    engine = Engine(llama(), tokenizer, EngineOptions(runtime="openvino", weights="int8"))
    assert (engine._speculation.lookup((5,), 9) is not None) == is_exact
    assert (engine._speculation.lookup((5,), 9, has_adapter=True) is not None) == (is_exact and adds_exactly)
