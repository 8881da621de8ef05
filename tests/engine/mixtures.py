"""Bases with adapters of every method, and what transformers answers with each of them alone."""

from __future__ import annotations

from functools import cache

import torch
from tests.engine.adapters import (
    END,
    VOCABULARY,
    attached,
    configs_for,
    gpt2,
    in_memory,
    llama,
    of_all_tokens,
)
from tests.reference.single_adapter import answer

from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.engine.request import SamplingParams

LIMIT = 10
GENERATOR = torch.Generator().manual_seed(11)
PROMPTS = [
    tuple(torch.randint(2, VOCABULARY, (length,), generator=GENERATOR).tolist())
    for length in (3, 1, 17, 8, 21)
]
BUILDERS = {"llama": llama, "gpt2": gpt2}


class World:
    """A base, its adapters in memory, and what transformers answers with each of them alone.

    In half precision these answers are those of the same weights in float32.
    """

    def __init__(self, family, dtype=torch.float32):
        def build():
            return BUILDERS[family]().to(dtype).float()

        self.model = build().to(dtype)
        self.adapters = {}
        self.expected = {}
        systems = {None: build()}
        for seed, (name, config) in enumerate(configs_for(systems[None]).items()):
            systems[name] = attached(build(), config, seed=seed)
            self.adapters[name] = in_memory(systems[name])
        for name, system in systems.items():
            for number, prompt in enumerate(PROMPTS):
                self.expected[name, number] = answer(system, prompt, max_new_tokens=LIMIT, end_id=END)

    def engine(self, tokenizer, **options):
        engine = Engine(self.model, tokenizer, EngineOptions(**options))
        for name, adapter in self.adapters.items():
            engine.add_adapter(name, adapter)
        return engine


@cache
def world_of(family, dtype=torch.float32):
    return World(family, dtype)


def params(limit=LIMIT):
    return SamplingParams(max_new_tokens=limit, logprobs=VOCABULARY)


def check(world, name, number, outputs, limit=LIMIT, *, atol=1e-5):
    tokens, logprobs = world.expected[name, number]
    tokens = tokens[:limit]
    assert [output.token_id for output in outputs] == tokens, (name, number)
    found = torch.stack([of_all_tokens(output.logprobs.top) for output in outputs])
    # And a few units in the last place of float32 where they are large.
    torch.testing.assert_close(found, logprobs[: len(found)], atol=atol, rtol=1e-6)
    ended = tokens[-1] == END
    assert outputs[-1].finish_reason == ("stop" if ended else "length")


def run(engine, requests):
    outputs = {request.id: [] for request in requests}
    for request in requests:
        engine.submit(request)
    while engine.busy:
        for output in engine.step():
            outputs[output.request_id].append(output)
        engine.check_integrity()
    return outputs
