"""Speculation by prompt lookup: what it saves where answers quote their prompt, and costs where nothing repeats.

    python benchmarks/speculation.py [--rounds N] [--requests 1,8] [--runtime openvino] [--weights int4]

Two tasks on abstracts of ACLSum's test papers: greedy answers to prompts that ask for the abstract again, which small
models do, and texts about the papers' titles drawn at temperature 1, in which little repeats. The same requests run
with and without speculation in turn, in two engines of one base, and the ratios of each round's times are what is
compared; those of processor time, too, which other work on the machine disturbs less. Both must give the same tokens;
the draws have seeds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import torch
from machine import LoadWatch, gemm_gflops

from manytune.demo.aclsum import read_papers
from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.engine.request import Completion, Request, SamplingParams
from manytune.store.base import Base, load_base

#: How many times as fast a task has to be with speculation.
REQUIRED = {"quotes": 1.3, "nothing repeats": 0.97}


@dataclass(frozen=True)
class Run:
    """One task, answered once.

    Attributes:
        seconds: How long it took.
        processor_seconds: Processor time of all threads.
        answers: The answers.
        drafted: Tokens that were drafted.
        accepted: How many of them were right.
    """

    seconds: float
    processor_seconds: float
    answers: list[Completion]
    drafted: int
    accepted: int


def tasks(base: Base, papers: int, tokens: int) -> dict[str, list[Request]]:
    """The requests of each task."""
    found: dict[str, list[Request]] = {name: [] for name in REQUIRED}
    for number, paper in enumerate(read_papers("test")[:papers]):
        quoting = f"Abstract:\n{paper.abstract}\n\nThe same abstract again, word for word:\n"
        drawn = f"A short story about {paper.title.lower()}, told by a fisherman:\n"
        sampled = SamplingParams(tokens, temperature=1.0, seed=number, ignore_eos=True)
        for name, prompt, params in (
            ("quotes", quoting, SamplingParams(tokens, ignore_eos=True)),
            ("nothing repeats", drawn, sampled),
        ):
            ids = tuple(base.tokenizer(prompt)["input_ids"])
            found[name].append(Request(str(number), ids, params))
    return found


def answered(engine: Engine, wanted: list[Request], at_once: int) -> Run:
    """Answer requests, so many at once."""
    before = engine.counters()
    start, processor = time.perf_counter(), time.process_time()
    answers = [
        answer
        for first in range(0, len(wanted), at_once)
        for answer in engine.generate(wanted[first : first + at_once])
    ]
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    after = engine.counters()
    drafted = after.drafted_tokens - before.drafted_tokens
    return Run(seconds, processor, answers, drafted, after.accepted_tokens - before.accepted_tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", default="1,8", help="how many run at once, such as 1,8")
    parser.add_argument("--papers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96, help="new tokens of each")
    parser.add_argument("--runtime", default="torch")
    parser.add_argument("--weights", default="reordered")
    options = parser.parse_args()
    base = load_base("embedded")
    wanted = tasks(base, options.papers, options.tokens)
    form = {"runtime": options.runtime, "weights": options.weights}
    engines = {
        mode: Engine(base.model, base.tokenizer, EngineOptions(**form, speculation=mode))
        for mode in ("off", "on")
    }
    watch = LoadWatch()
    lines = []
    for at_once in map(int, options.requests.split(",")):
        for task, requests in wanted.items():
            ratios, of_processor = [], []
            runs = {mode: answered(one, requests, at_once) for mode, one in engines.items()}
            for number in range(options.rounds):  # those before were to warm up
                order = list(engines) if number % 2 else list(reversed(engines))
                runs = {mode: answered(engines[mode], requests, at_once) for mode in order}
                ratios.append(runs["off"].seconds / runs["on"].seconds)
                of_processor.append(runs["off"].processor_seconds / runs["on"].processor_seconds)
            equal = [
                one.token_ids == other.token_ids
                for one, other in zip(runs["off"].answers, runs["on"].answers, strict=True)
            ]
            drafting, ratio = runs["on"], statistics.median(ratios)
            tokens = len(requests) * options.tokens
            lines.append(
                f"| {at_once} | {task} | {tokens / runs['off'].seconds:.1f} | {tokens / drafting.seconds:.1f} | "
                f"{ratio:.2f} ({min(ratios):.2f}-{max(ratios):.2f}) | "
                f"{statistics.median(of_processor):.2f} | {REQUIRED[task]} "
                f"{'ok' if ratio >= REQUIRED[task] else 'MISSED'} | {drafting.drafted}, {drafting.accepted} | "
                f"{sum(equal)} of {len(equal)} |"
            )
            print(lines[-1], flush=True)
    print(f"\n{watch.stop()}; matrix products {gemm_gflops():.0f} GFLOP/s, {torch.get_num_threads()} threads")
    print(
        f"{engines['on'].runtime}, {options.weights}, {options.rounds} rounds, {options.tokens} new tokens each\n"
    )
    print(
        "| at once | answers | tokens/s without | with | ratio, median (range) | of processor time | required | "
        "drafted, accepted | equal |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
