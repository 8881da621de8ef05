"""Tokens a second of a batch whose answers must be JSON of a schema, compared with the same batch without constraints.

    python benchmarks/constrained.py [--rounds N]

32 requests with prompts of 16 to 64 tokens ask for 32 to 64 new tokens each: without constraints, half of them with and
half without, and all with. Every constrained request has a schema of its own, a list of objects too long to end before
the limit, so that each run computes the same number of tokens. They run in turn, and the ratios of each round's times
are what is compared: wall time, which means something on an idle machine only, and this process's time on processors,
in which the threads that compute masks count, too. A table says what one mask costs for each kind of constraint.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from machine import LoadWatch, gemm_gflops

from manytune.engine.base_model import end_token_ids
from manytune.engine.constraints.compiled import GrammarCache
from manytune.engine.constraints.grammar import Grammar, regex_grammar, schema_grammar
from manytune.engine.constraints.vocabulary import Vocabulary
from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams
from manytune.store.base import load_base

REQUESTS = 32
#: How much longer a run may take than the one without constraints.
REQUIRED = {"half constrained": 1.15, "all constrained": 1.15}


def schema(number: int) -> dict[str, Any]:
    """A list of objects of several kinds of values."""
    person = {
        "type": "object",
        "properties": {
            f"name{number}": {"type": "string", "maxLength": 40},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "kind": {"enum": ["teacher", "student", f"guest {number}"]},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 4},
        },
        "required": [f"name{number}", "age", "kind", "tags"],
        "additionalProperties": False,
    }
    return {"type": "array", "items": person, "minItems": 500}


def requests(constrained: int, cache: GrammarCache, vocabulary: int) -> list[Request]:
    """Requests, of which so many are constrained, evenly spread."""
    generator = torch.Generator().manual_seed(0)

    def whole(low: int, high: int, count: int = 1) -> list[int]:
        return torch.randint(low, high, (count,), generator=generator).tolist()

    found = []
    for number in range(REQUESTS):
        prompt, tokens = tuple(whole(100, vocabulary, whole(16, 65)[0])), whole(32, 65)[0]
        is_constrained = number * constrained // REQUESTS != (number + 1) * constrained // REQUESTS
        constraint = cache.compile(schema_grammar(schema(number))) if is_constrained else None
        params = SamplingParams(tokens, ignore_eos=True)
        found.append(Request(str(number), prompt, params, constraint=constraint))
    return found


def run_of(engine: Engine, wanted: list[Request]) -> Callable[[], None]:
    def run() -> None:
        answers = engine.generate(wanted)
        assert [len(one.token_ids) for one in answers] == [one.params.max_new_tokens for one in wanted]

    return run


def mask_costs(cache: GrammarCache, tokenizer: Any) -> dict[str, tuple[float, float]]:
    """Median and mean seconds of one mask, along an answer to each grammar."""
    answers: dict[str, tuple[Grammar, str]] = {
        "an object": (
            schema_grammar({"type": "object"}),
            '{"name": "Anna", "tags": ["one", "two"], "n": 12.5}',
        ),
        "a schema": (
            schema_grammar({**schema(0), "minItems": 1}),
            '[{"name0": "Anna Karenina", "age": 28, "kind": "guest 0", "tags": ["one", "two", "three"]}]',
        ),
        "a date": (regex_grammar(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}"), "2026-11-29T17:30"),
        "any text": (regex_grammar(r"(?s:.)*"), "The quick brown fox jumps over the lazy dog."),
    }
    found = {}
    for name, (grammar, text) in answers.items():
        times = []
        for _ in range(5):
            matcher = cache.compile(grammar).start()
            for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
                start = time.thread_time()
                allowed = matcher.allowed()
                times.append(time.thread_time() - start)
                assert allowed[token], (name, text)
                matcher.accept(token)
            assert matcher.may_end
        found[name] = (statistics.median(times), statistics.mean(times))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    base = load_base("embedded")
    size = base.model.config.vocab_size
    start = time.perf_counter()
    cache = GrammarCache(Vocabulary(base.tokenizer, size, end_token_ids(base.model, base.tokenizer)))
    print(f"the vocabulary of {size:,} tokens was read in {time.perf_counter() - start:.2f} s")
    engine = Engine(base.model, base.tokenizer, EngineOptions(max_batch=REQUESTS, speculation="off"))
    wanted = {"free": 0, "half constrained": REQUESTS // 2, "all constrained": REQUESTS}
    runs = {name: run_of(engine, requests(count, cache, size)) for name, count in wanted.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    spent: dict[str, list[float]] = {name: [] for name in runs}
    runs["free"]()  # the first forwards allocate memory
    watch = LoadWatch()
    for _ in range(options.rounds):
        for name, run in runs.items():
            start, begun = time.perf_counter(), time.process_time()
            run()
            times[name].append(time.perf_counter() - start)
            spent[name].append(time.process_time() - begun)
            print(f"    {name}: {times[name][-1]:.2f} s, processors {spent[name][-1]:.2f} s", flush=True)
    load = watch.stop()
    print(f"\n{load}; matrix products {gemm_gflops():.0f} GFLOP/s, {torch.get_num_threads()} threads\n")
    tokens = sum(one.params.max_new_tokens for one in requests(0, cache, size))
    for name, own in times.items():
        print(f"{name:20s} {tokens / statistics.median(own):8.1f} tokens/s")
    print()
    for name, required in REQUIRED.items():
        ratio, cost = (
            statistics.median(own / free for own, free in zip(kind[name], kind["free"], strict=True))
            for kind in (times, spent)
        )
        verdict = "ok" if ratio <= required else "MISSED"
        print(
            f"{name} / free: {ratio:.3f}x the time (required {required}x) {verdict}; processors {cost:.3f}x"
        )
    print()
    for name, (median, mean) in mask_costs(cache, base.tokenizer).items():
        print(f"a mask of {name:10s} median {median * 1e6:6.0f} µs, mean {mean * 1e6:6.0f} µs")


if __name__ == "__main__":
    main()
