"""One server process with all cores, and `--workers` with as many processes: tokens a second, memory, adapters loaded.

    python benchmarks/workers.py [--rounds N] [--workers N] [--weights FORM] [--runtime NAME]

32 clients, each of which sends its next request when it has the answer to the last one: 96 requests a round, of
`serving.py`'s lengths, over 32 adapters of Zipf popularity. Both servers are up; they are asked in turn, the same
requests in the same round. What memory is shared is counted once (the proportional set size of Linux).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from machine import LoadWatch, gemm_gflops
from processes import family
from server_systems import Case, prepare
from serving import Asked, asked_for
from serving_client import Server, call, free_port, served

from manytune.store.base import load_base

CLIENTS, REQUESTS, ADAPTERS = 32, 96, 32
#: Tokens a second of the workers, compared with one process.
REQUIRED = 1.0
#: The share of requests that the replica of their adapter answers.
REQUIRED_AFFINITY = 0.9


def drawn(asked: Sequence[Asked], number: int) -> list[tuple[str, Asked]]:
    """A round's requests, each with its adapter."""
    draw = random.Random(number)
    names = draw.choices(range(ADAPTERS), [1 / rank for rank in range(1, ADAPTERS + 1)], k=REQUESTS)
    return [(f"qv{name}", draw.choice(asked)) for name in names]


async def tokens_a_second(port: int, requests: Sequence[tuple[str, Asked]]) -> float:
    """All requests by so many clients, each of which must get all of its tokens."""
    waiting = list(requests)

    async def client() -> None:
        while waiting:
            name, request = waiting.pop()
            body = {
                "model": name,
                "prompt": list(request.prompt),
                "max_tokens": request.tokens,
                "temperature": 0,
                "ignore_eos": True,
            }
            reply = await call(port, "POST", "/v1/completions", body)
            assert reply.status == 200, reply
            assert reply.body["usage"]["completion_tokens"] == request.tokens, reply

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return sum(request.tokens for _, request in requests) / (time.perf_counter() - began)


def metric(port: int, name: str, labels: str = "") -> float:
    """The sum of a metric's samples, of those with a label if one is given."""
    text = asyncio.run(call(port, "GET", "/metrics")).body
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return sum(float(value) for head, _, value in lines if head.partition("{")[0] == name and labels in head)


def memory(server: Server) -> float:
    """MiB that a server's processes take together, what they share counted once."""
    total = 0
    for process in family(server.process.pid):
        file = Path(f"/proc/{process}/smaps_rollup")
        lines = file.read_text().splitlines() if file.exists() else []
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--weights", default="reordered", help="as of manytune serve")
    parser.add_argument("--runtime", default="auto", help="as of manytune serve")
    options = parser.parse_args()
    base = load_base("embedded")
    asked = asked_for(base.model.config.vocab_size)
    names = ("one process", f"{options.workers} workers")
    with TemporaryDirectory() as scratch, ExitStack() as running:
        folder = Path(scratch)
        prepare(base, folder, [Case(CLIENTS, 1, ADAPTERS)])
        del base
        command = [str(Path(sys.executable).with_name("manytune")), "serve", "--base", "embedded"]
        command += ["--adapters", str(folder / "store"), "--weights", options.weights]
        command += ["--runtime", options.runtime]
        servers = {}
        for name, more in zip(names, ([], ["--workers", str(options.workers)]), strict=True):
            port = free_port()
            log = folder / name.replace(" ", "-")
            whole = [*command, "--port", str(port), *more]
            servers[name] = running.enter_context(served(whole, port=port, ready="/readyz", log=log))
        for server in servers.values():  # what is loaded and compiled at the first request
            asyncio.run(tokens_a_second(server.port, drawn(asked, 0)[:CLIENTS]))
        watch = LoadWatch()
        speeds: dict[str, list[float]] = {name: [] for name in names}
        for number in range(1, options.rounds + 1):
            for name in names if number % 2 else reversed(names):
                speeds[name].append(asyncio.run(tokens_a_second(servers[name].port, drawn(asked, number))))
        load = watch.stop()
        for name, server in servers.items():
            loads = metric(server.port, "manytune_adapter_loads_total")
            print(
                f"{name:12s} {statistics.median(speeds[name]):7.1f} tokens/s ({min(speeds[name]):.1f} to "
                f"{max(speeds[name]):.1f}), {memory(server):6.0f} MiB, {loads:.0f} adapters loaded, started in "
                f"{server.started_in:.1f} s"
            )
        many = servers[names[1]].port
        own, others = (
            metric(many, "manytune_routed_total", f'choice="{choice}"') for choice in ("first", "overflow")
        )
    one, several = (statistics.median(speeds[name]) for name in names)
    print(f"\n{load}; matrix products {gemm_gflops():.0f} GFLOP/s, {torch.get_num_threads()} threads")
    for what, value, required in (
        (f"{names[1]} / one process", several / one, REQUIRED),
        ("requests at their adapter's own worker", own / (own + others), REQUIRED_AFFINITY),
    ):
        print(f"{what}: {value:.2f} (required {required}) {'ok' if value >= required else 'MISSED'}")


if __name__ == "__main__":
    main()
