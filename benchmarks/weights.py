"""What the forms of the base's weights give and cost: decoding speed, and how much worse real text is predicted.

    python benchmarks/weights.py [--rounds N]

One request and eight at once, 48 new tokens each, on every form in turn; tokens a second from the median of the rounds,
prompts included. Nats a token are the mean negative log likelihood of abstracts of ACLSum's test papers: a form that
rounds predicts them worse than the plain weights by what it costs.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from machine import LoadWatch

from manytune.demo.aclsum import read_papers
from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions, Runtime
from manytune.engine.request import Request, SamplingParams
from manytune.engine.weights import Weights
from manytune.store.base import Base, load_base

FORMS: tuple[tuple[Runtime, Weights], ...] = (
    ("torch", "plain"),
    ("torch", "reordered"),
    ("torch", "int8"),
    ("torch", "int4"),
    ("openvino", "plain"),
    ("openvino", "int8"),
    ("openvino", "int4"),
)
NEW_TOKENS = 48
PAPERS = 12


def nats_per_token(base: Base, engine: Engine) -> float:
    params = SamplingParams(max_new_tokens=0, prompt_logprobs=0)
    asked = [
        Request(str(number), tuple(base.tokenizer(paper.abstract)["input_ids"][:256]), params)
        for number, paper in enumerate(read_papers("test")[:PAPERS])
    ]
    scored = [one.logprob for answer in engine.generate(asked) for one in answer.prompt_logprobs or ()]
    return -sum(scored) / len(scored)


def seconds(engine: Engine, requests: int, vocabulary: int) -> float:
    generator = torch.Generator().manual_seed(0)
    asked = [
        Request(
            str(number),
            tuple(torch.randint(100, vocabulary, (24,), generator=generator).tolist()),
            SamplingParams(NEW_TOKENS, ignore_eos=True),
        )
        for number in range(requests)
    ]
    start = time.perf_counter()
    engine.generate(asked)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    base = load_base("embedded")
    vocabulary = base.model.config.vocab_size
    engines = {
        (runtime, weights): Engine(
            base.model, base.tokenizer, EngineOptions(weights=weights, runtime=runtime, speculation="off")
        )
        for runtime, weights in FORMS
    }
    engines = {form: engine for form, engine in engines.items() if engine.runtime == form[0]}
    times: dict[tuple[tuple[Runtime, Weights], int], list[float]] = {}
    watch = LoadWatch()
    for number in range(options.rounds + 1):
        for form, engine in engines.items():
            for requests in (1, 8):
                spent = seconds(engine, requests, vocabulary)
                if number:  # the first warms up
                    times.setdefault((form, requests), []).append(spent)
    print(f"{watch.stop()}; {torch.get_num_threads()} threads, {options.rounds} rounds\n")
    print(
        "| runtime, weights | 1 request, tokens/s | 8 requests, tokens/s | nats a token |\n|---|---|---|---|"
    )
    for form, engine in engines.items():
        one, eight = (n * NEW_TOKENS / statistics.median(times[form, n]) for n in (1, 8))
        print(
            f"| {', '.join(form)} | {one:.1f} | {eight:.1f} | {nats_per_token(base, engine):.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
