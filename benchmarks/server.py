"""Tokens a second over HTTP: manytune's runtimes compared with OpenVINO GenAI, llama.cpp and others.

    python benchmarks/server.py [--rounds N] [--minutes N] [--only SYSTEM ...] [--peers-python PATH] [--engine]

All servers read the same file of 4-bit weights, the embedded base's, and run at once, each in a process of its own; one
is asked at a time, all in turn in each round, by one client. Figures are medians of the rounds. Prompts have 16 to 64
random tokens; answers are greedy and go on to the limit. LoRA adapters have rank 8. Those that aren't installed are
named, with what to run. A short run: `--rounds 1 --scale 0.1 --most-requests 4`.

`float32`, `bf16`, `a base in bfloat16` and `vLLM` multiply with the dequantized weights, the others with 4 bits (the
head with 8). `torch-onednn` is without manytune's own kernels. OpenVINO GenAI is asked without adapters, as it has one
set of them for all requests of a pipeline; llama.cpp with at most eight.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from machine import LoadWatch, gemm_gflops, processor
from server_engine import engine_speed
from server_systems import USUAL, Case, System, prepare, systems
from serving_client import Server, call, free_port, served

from manytune.store.base import load_base

BASE_1, BASE_8, BASE_32 = Case(1, 64), Case(8, 48), Case(32, 48)
ONE, EIGHT, EIGHT_OF_32, ALL_32 = Case(1, 64, 1), Case(8, 48, 8), Case(32, 48, 8), Case(32, 48, 32)
LINEAR_32 = Case(32, 48, 32, "all-linear")
FIRST = Case(1, 1, prompt=(500, 500))
#: Cases that are compared with each other share a part. All linear layers come later, as whatever a server prepares for
#: them would serve the others, too.
PARTS = ((BASE_1, BASE_8, BASE_32, ONE, EIGHT, EIGHT_OF_32, ALL_32, FIRST), (BASE_32, LINEAR_32))
#: Up to which share of the time a part may begin another round.
SHARES = (0.75, 1.0)

OURS, GENAI, LLAMA = "openvino-int4", "openvino-genai", "llama.cpp"
#: Forms without 4 bits are compared with what torch's own products in float32 reach.
FLOAT32, BF16, BF16_BASE = "torch-onednn", "openvino-bf16", "openvino-bf16-base"
#: What is required: a system's and a case's speed, as a share of another's.
REQUIRED = (
    (OURS, BASE_1, GENAI, BASE_1, 1.0),
    (OURS, BASE_8, GENAI, BASE_8, 0.9),
    (OURS, BASE_32, GENAI, BASE_32, 0.9),
    (OURS, ONE, OURS, BASE_1, 0.9),
    (OURS, EIGHT, OURS, BASE_8, 0.85),
    (OURS, ALL_32, OURS, BASE_32, 0.85),
    (OURS, LINEAR_32, OURS, BASE_32, 0.7),
    (OURS, ONE, LLAMA, ONE, 1.0),
    (OURS, EIGHT, LLAMA, EIGHT, 3.0),
    (OURS, EIGHT_OF_32, LLAMA, EIGHT_OF_32, 5.0),
    (OURS, FIRST, GENAI, FIRST, 1.0),
    (OURS, FIRST, LLAMA, FIRST, 1.0),
    *((form, case, FLOAT32, case, 1.8) for form in (BF16, BF16_BASE) for case in (BASE_1, BASE_8, BASE_32)),
)
#: Of the engine's own tokens a second, with `--engine`.
REQUIRED_OF_ENGINE = 0.9


@dataclass(frozen=True)
class Running:
    """A server that is ready."""

    system: System
    server: Server


Times = dict[tuple[int, str, Case], list[float]]
"""Seconds of each round, by part, system and case."""


async def seconds(running: Running, case: Case, prompts: Sequence[Sequence[int]]) -> float:
    """All requests at once; each must bring all of its tokens."""

    async def one(number: int, prompt: Sequence[int]) -> None:
        asked = running.system.asks(case.adapter(number))
        body = {"prompt": prompt, "max_tokens": case.tokens, **asked}
        reply = await call(running.server.port, "POST", "/v1/completions", body)
        assert reply.status == 200, (running.system.name, reply)
        assert reply.body["usage"]["completion_tokens"] == case.tokens, (running.system.name, reply)

    began = time.perf_counter()
    await asyncio.gather(*(one(*pair) for pair in enumerate(prompts)))
    return time.perf_counter() - began


def started(folder: Path, chosen: Sequence[System], stack: ExitStack) -> Iterator[Running]:
    """The servers that can run, each ready; what is missing is printed."""
    for system in chosen:
        reason, port, log = system.missing, free_port(), folder / f"{system.key}.log"
        if reason is None:
            command, environment = system.command(port), system.environment
            try:
                server = stack.enter_context(
                    served(command, port=port, ready=system.ready, log=log, **environment)
                )
            except SystemExit as error:
                reason = str(error)
            else:
                if system.unwanted is None or system.unwanted not in log.read_text(errors="replace"):
                    yield Running(system, server)
                    continue
                reason = f"it doesn't run what it is called after; its log has {system.unwanted!r}"
        print(f"{system.name}: left out, {reason}", flush=True)


def measured(running: Sequence[Running], sizes: Sizes, rounds: int, end: float, vocabulary: int) -> Times:
    """Rounds of each part, as many as are asked for and are over by `end`, and at least one."""
    times: Times = {}
    began = time.perf_counter()
    for part, (cases, share) in enumerate(zip(PARTS, SHARES, strict=True)):
        asked = {case: sizes.of(case) for case in cases}
        prompts = {case: asked[case].prompts(vocabulary) for case in cases}
        for case in cases:  # what is loaded and compiled at the first request
            for one in running:
                if one.system.takes(case):
                    few = replace(asked[case], tokens=min(2, asked[case].tokens))
                    asyncio.run(seconds(one, few, prompts[case]))
        for number in range(rounds):
            start = time.perf_counter()
            for case in cases:
                for one in running if number % 2 == 0 else reversed(running):
                    if not one.system.takes(case):
                        continue
                    for _ in range(3 if case.is_first_token else 1):
                        spent = asyncio.run(seconds(one, asked[case], prompts[case]))
                        times.setdefault((part, one.system.key, case), []).append(spent)
            now = time.perf_counter()
            print(f"part {part + 1}, round {number + 1}: {now - start:.0f} s", flush=True)
            if now + (now - start) > began + (end - began) * share:
                break
    return times


@dataclass(frozen=True)
class Sizes:
    """How much of each case is asked.

    Attributes:
        scale: Of the new tokens of each answer.
        most: Requests at once, and adapters.
    """

    scale: float
    most: int

    def of(self, case: Case) -> Case:
        """A case in this size; that of the first token stays as it is."""
        if case.is_first_token:
            return case
        tokens = max(2, round(case.tokens * self.scale))
        requests, adapters = (min(self.most, number) for number in (case.requests, case.adapters))
        return replace(case, requests=requests, tokens=tokens, adapters=adapters)


def figure(times: Times, part: int, key: str, case: Case, sizes: Sizes) -> float | None:
    """Tokens a second, or seconds to the first token; None if it wasn't measured."""
    found = times.get((part, key, case))
    if not found:
        return None
    median = statistics.median(found)
    sized = sizes.of(case)
    return median if case.is_first_token else sized.requests * sized.tokens / median


def table(running: Sequence[Running], times: Times, sizes: Sizes) -> None:
    """What was measured, as a table in Markdown."""
    print("\n| tokens/s | " + " | ".join(one.system.name for one in running) + " |")
    print("|---|" + "---|" * len(running))
    for part, cases in enumerate(PARTS):
        for case in cases:
            row = []
            for one in running:
                found = figure(times, part, one.system.key, case, sizes)
                row.append(
                    "–" if found is None else f"{found:.2f} s" if case.is_first_token else f"{found:.0f}"
                )
            print(
                f"| {sizes.of(case)}{' (again)' if part and not case.adapters else ''} | {' | '.join(row)} |"
            )
    for name, value in (
        ("started in", lambda one: f"{one.server.started_in:.0f} s"),
        ("most memory", lambda one: f"{one.server.peak_memory() / 2**20:.0f} MiB"),
    ):
        print(f"| {name} | " + " | ".join(map(value, running)) + " |")


def verdicts(times: Times, names: Mapping[str, str], sizes: Sizes) -> None:
    """The ratios, and what is required of those that have a requirement."""
    print()
    for key, case, other, of, required in REQUIRED:
        part = next(number for number, cases in enumerate(PARTS) if case in cases and of in cases)
        ours, theirs = (figure(times, part, *pair, sizes) for pair in ((key, case), (other, of)))
        if ours is None or theirs is None:
            continue
        ratio = theirs / ours if case.is_first_token else ours / theirs
        verdict = "ok" if ratio >= required else "MISSED"
        compared = names[other] if case == of else f"its own {sizes.of(of)}"
        print(f"{names[key]}, {sizes.of(case)} / {compared}: {ratio:.2f}x (required {required}x) {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--minutes", type=float, default=11, help="of the whole run; each part has one round at least"
    )
    parser.add_argument("--scale", type=float, default=1, help="of the new tokens of each answer")
    parser.add_argument(
        "--only",
        nargs="*",
        default=USUAL,
        metavar="SYSTEM",
        help=f"by default {' '.join(USUAL)}; there are also openvino (in float32), openvino-bf16, "
        "openvino-bf16-base, torch-bf16-base, torch-onednn, peft and vllm",
    )
    parser.add_argument(
        "--peers-python",
        default=sys.executable,
        metavar="PATH",
        help="the interpreter that has openvino_genai and xllamacpp; by default this one",
    )
    parser.add_argument(
        "--vllm", default="vllm", help="the command of vLLM, which needs an environment of its own"
    )
    parser.add_argument(
        "--engine", action="store_true", help="also the engine itself, in turn with the torch server"
    )
    parser.add_argument(
        "--most-requests", type=int, default=32, metavar="N", help="requests at once; fewer for a short run"
    )
    options = parser.parse_args()
    end = time.perf_counter() + 60 * options.minutes
    sizes = Sizes(options.scale, options.most_requests)
    base = load_base("embedded")
    vocabulary = base.model.config.vocab_size
    cases = [sizes.of(case) for part in PARTS for case in part]
    print(f"{processor()}, {torch.get_num_threads()} threads, matrix products {gemm_gflops():.0f} GFLOP/s")
    watch = LoadWatch()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(base, folder, cases)
        known = systems(folder, peers_python=options.peers_python, vllm=options.vllm)
        unknown = set(options.only) - {system.key for system in known}
        if unknown:
            parser.error(f"--only: no system is called {', '.join(sorted(unknown))}")
        chosen = [system for system in known if system.key in options.only]
        with ExitStack() as stack:
            running = list(started(folder, chosen, stack))
            if not running:
                sys.exit("there is no server to ask")
            if not options.engine:
                del base  # its memory
            times = measured(running, sizes, options.rounds, end, vocabulary)
            table(running, times, sizes)
            verdicts(times, {system.key: system.name for system in known}, sizes)
            torch_server = next((one for one in running if one.system.key == "torch"), None)
            if options.engine and torch_server is not None:
                case = sizes.of(ALL_32)
                prompts = case.prompts(vocabulary)
                ratio = engine_speed(
                    base,
                    case,
                    folder / "adapters",
                    lambda: asyncio.run(seconds(torch_server, case, prompts)),
                    options.rounds,
                )
                verdict = "ok" if ratio >= REQUIRED_OF_ENGINE else "MISSED"
                print(
                    f"{torch_server.system.name}, {case} / the engine itself: {ratio:.2f}x "
                    f"(required {REQUIRED_OF_ENGINE}x) {verdict}"
                )
    print(f"\n{watch.stop()}")


if __name__ == "__main__":
    main()
