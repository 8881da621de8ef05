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
from torch.nn import functional

from manytune.demo.aclsum import read_papers
from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams
from manytune.engine.weights import Weights, linear_layers
from manytune.mixed.layers import MixedLayers
from manytune.store.base import Base, load_base

FORMS: tuple[Weights, ...] = ("plain", "reordered", "int8", "int4")
NEW_TOKENS = 48
PAPERS = 12


def nats_per_token(base: Base, form: Weights) -> float:
    layers = MixedLayers(dict(base.model.named_modules()), linear_layers(base.model, form))
    total, count = 0.0, 0
    for paper in read_papers("test")[:PAPERS]:
        ids = torch.tensor([base.tokenizer(paper.abstract)["input_ids"][:256]])
        with torch.inference_mode(), layers.applied({}):
            logits = base.model(input_ids=ids).logits[0, :-1]
        total += float(functional.cross_entropy(logits.float(), ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    return total / count


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
    engines = {form: Engine(base.model, base.tokenizer, EngineOptions(weights=form)) for form in FORMS}
    times: dict[tuple[Weights, int], list[float]] = {}
    watch = LoadWatch()
    for number in range(options.rounds + 1):
        for form, engine in engines.items():
            for requests in (1, 8):
                spent = seconds(engine, requests, vocabulary)
                if number:  # the first warms up
                    times.setdefault((form, requests), []).append(spent)
    print(f"{watch.stop()}; {torch.get_num_threads()} threads, {options.rounds} rounds\n")
    print("| weights | 1 request, tokens/s | 8 requests, tokens/s | nats a token |\n|---|---|---|---|")
    for form in FORMS:
        one, eight = (n * NEW_TOKENS / statistics.median(times[form, n]) for n in (1, 8))
        print(f"| {form} | {one:.1f} | {eight:.1f} | {nats_per_token(base, form):.4f} |", flush=True)


if __name__ == "__main__":
    main()
