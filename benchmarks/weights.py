"""What the forms of the base's weights give and cost: decoding speed, and how far results are from float32's.

    python benchmarks/weights.py [--rounds N] [--papers N] [--prompts N] [--emulate-bf16]

One request and eight at once, 48 new tokens each, on every form in turn; tokens a second from the median of the rounds,
prompts included. Nats a token are the mean negative log likelihood of the first 256 tokens of abstracts of ACLSum's
test papers: a form that rounds predicts them worse than the plain weights by what it costs. Equal tokens are measured
on the demo's test prompts: of the plain weights' greedy answers the share of tokens that are the form's likeliest, too,
each after the same beginning; and the share of answers all of whose tokens are, which is that of equal greedy answers.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from unittest import mock

import torch
from machine import LoadWatch, processor

from manytune.data.encoding.encode import Encoder
from manytune.data.templates import Segment
from manytune.demo.aclsum import QUESTIONS, read_papers
from manytune.demo.recipes import MAX_NEW_TOKENS
from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions, Runtime
from manytune.engine.request import Request, SamplingParams
from manytune.engine.weights import Weights
from manytune.errors import ConfigError
from manytune.store.base import Base, load_base

REFERENCE: tuple[Runtime, Weights] = ("torch", "plain")
FORMS: tuple[tuple[Runtime, Weights], ...] = (
    REFERENCE,
    ("torch", "reordered"),
    ("torch", "bf16"),
    ("torch", "int8"),
    ("torch", "int4"),
    ("openvino", "plain"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
    ("openvino", "int4"),
)
NEW_TOKENS = 48


def nats_per_token(base: Base, engine: Engine, papers: int) -> float:
    params = SamplingParams(max_new_tokens=0, prompt_logprobs=0)
    asked = [
        Request(str(number), tuple(base.tokenizer(paper.abstract)["input_ids"][:256]), params)
        for number, paper in enumerate(read_papers("test")[:papers])
    ]
    scored = [one.logprob for answer in engine.generate(asked) for one in answer.prompt_logprobs or ()]
    return -sum(scored) / len(scored)


def demo_prompts(base: Base, count: int) -> list[tuple[int, ...]]:
    """The demo's test prompts, those of a paper one after another."""
    encoder = Encoder(base.tokenizer, max_length=None)
    asked = [(paper, question) for paper in read_papers("test") for question in QUESTIONS.values()]
    return [
        tuple(encoder.prompt_ids([Segment("user", f"{paper.abstract}\n\n{question}")]))
        for paper, question in asked[:count]
    ]


def greedy(engine: Engine, prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    params = SamplingParams(MAX_NEW_TOKENS)
    asked = [Request(str(number), prompt, params) for number, prompt in enumerate(prompts)]
    return [answer.token_ids for answer in engine.generate(asked)]


def equal_tokens(
    engine: Engine, prompts: Sequence[tuple[int, ...]], answers: Sequence[tuple[int, ...]]
) -> tuple[float, float]:
    """The shares of answers' tokens, and of whole answers, that the engine finds the likeliest, too."""
    params = SamplingParams(max_new_tokens=0, prompt_logprobs=1)
    asked = [
        Request(str(number), prompt + answer, params)
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
    equal = []
    for prompt, found in zip(prompts, engine.generate(asked), strict=True):
        scored = (found.prompt_logprobs or ())[len(prompt) - 1 :]
        equal.append([one.top[0][0] == one.token_id for one in scored])
    tokens = sum(map(len, equal))
    return sum(map(sum, equal)) / tokens, sum(map(all, equal)) / len(equal)


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


def engines_of(base: Base) -> dict[tuple[Runtime, Weights], Engine]:
    """One for each form; those that can't be had are named."""
    end = Encoder(base.tokenizer, max_length=None).end_id
    found = {}
    for runtime, weights in FORMS:
        options = EngineOptions(weights=weights, runtime=runtime, speculation="off")
        try:
            engine = Engine(base.model, base.tokenizer, options, end_ids=[end])
        except ConfigError as error:
            print(f"{runtime}, {weights}: left out, {error}")
            continue
        if engine.runtime == runtime:
            found[runtime, weights] = engine
        else:
            print(f"{runtime}, {weights}: left out, {engine.runtime} would run it")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="of the speeds; 0 for the precision alone")
    parser.add_argument("--papers", type=int, default=12, help="whose abstracts are read")
    parser.add_argument("--prompts", type=int, default=24, help="of the demo, three of a paper")
    parser.add_argument(
        "--emulate-bf16",
        action="store_true",
        help="measure bf16's precision on a processor that would be slow in it, too; its speed means nothing then",
    )
    options = parser.parse_args()
    base = load_base("embedded")
    vocabulary = base.model.config.vocab_size
    emulated = mock.patch("manytune.engine.bfloat16.multiplies_bfloat16", return_value=True)
    if options.emulate_bf16:
        emulated.start()
    engines = engines_of(base)
    times: dict[tuple[tuple[Runtime, Weights], int], list[float]] = {}
    watch = LoadWatch()
    for number in range(options.rounds + 1 if options.rounds else 0):
        for form, engine in engines.items():
            for requests in (1, 8):
                spent = seconds(engine, requests, vocabulary)
                if number:  # the first warms up
                    times.setdefault((form, requests), []).append(spent)
    prompts = demo_prompts(base, options.prompts)
    answers = greedy(engines[REFERENCE], prompts)
    tokens = sum(map(len, answers))
    print(f"{processor()}; {watch.stop()}; {torch.get_num_threads()} threads, {options.rounds} rounds")
    print(f"{options.papers} abstracts; {len(prompts)} prompts of the demo, {tokens} tokens of answers\n")
    columns = ("1 request, tokens/s", "8 requests, tokens/s", "nats a token", "equal tokens", "equal answers")
    print("| runtime, weights |", *(f"{column} |" for column in columns))
    print("|---" * (1 + len(columns)) + "|")
    for form, engine in engines.items():
        one, eight = (
            f"{n * NEW_TOKENS / statistics.median(times[form, n]):.1f}" if (form, n) in times else "–"
            for n in (1, 8)
        )
        of_tokens, of_answers = equal_tokens(engine, prompts, answers)
        print(
            f"| {', '.join(form)} | {one} | {eight} | {nats_per_token(base, engine, options.papers):.4f} "
            f"| {of_tokens:.2%} | {of_answers:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
