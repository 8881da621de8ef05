"""Many clients, many adapters, and everything that can happen to a server at once; every answer is checked.

    python benchmarks/load.py [--minutes N] [--clients N] [--adapters N] [--tiny]

A server (`manytune serve`) runs in a process of its own. Clients ask random adapters random questions of a known set,
streamed or whole, and hang up on a tenth of them. Meanwhile adapters are loaded, unloaded, pinned, verified and
replaced by other versions, the store is reloaded, adapters that are damaged or hold NaN or Inf are asked, and
malformed requests come in. An answer is right if it is what the engine gives with this one adapter and no
other; it says itself which version gave it. Where the two likeliest tokens are closer than rounding either may come,
and the answer is compared up to there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from machine import LoadWatch
from safetensors.torch import load_file, save_file
from serving_client import Server, call, free_port, served

from manytune.data.encoding.encode import Encoder
from manytune.data.templates import Segment
from manytune.engine.detokenize import decode
from manytune.engine.engine import Engine
from manytune.engine.request import Completion, Request, SamplingParams
from manytune.methods.lora.config import LoraConfig
from manytune.store.base import Base, load_base
from manytune.store.resident import read_resident
from manytune.store.store import AdapterStore

KEY = "load"
QUESTIONS = (
    "What is a good name for a cat?",
    "Write a sentence about the sea.",
    "Count from one to ten in words, please, and then say what comes after that.",
    "Explain in two sentences why the sky is blue during the day and red in the evening.",
)
LIMITS = (4, 8, 16)
#: Logits that are closer than this may change places when sums are rounded in another order.
TIE = 1e-3
MALFORMED: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/v1/chat/completions", b"{"),
    ("POST", "/v1/chat/completions", b"\xff\xfe"),
    ("POST", "/v1/chat/completions", {"model": "base"}),
    ("POST", "/v1/chat/completions", {"model": 5, "messages": "x"}),
    ("POST", "/v1/chat/completions", {"model": "nobody", "messages": [{"role": "user", "content": "x"}]}),
    (
        "POST",
        "/v1/chat/completions",
        {"model": "base", "messages": [{"role": "user", "content": "x"}], "tools": [1]},
    ),
    (
        "POST",
        "/v1/chat/completions",
        {"model": "base", "messages": [{"role": "user", "content": "x"}], "top_p": 7},
    ),
    (
        "POST",
        "/v1/chat/completions",
        {"model": "base", "messages": [{"role": "user", "content": "x" * 300_000}]},
    ),
    ("POST", "/v1/completions", {"model": "base", "prompt": [10**9]}),
    ("POST", "/v1/completions", {"model": "base", "prompt": "x", "max_tokens": 10**9}),
    ("POST", "/v1/compare", {"models": [], "messages": []}),
    ("GET", "/v1/models/..%2f..%2fetc", None),
    ("POST", "/v1/adapters/nobody/load", None),
    ("DELETE", "/v1/models", None),
)


@dataclass(frozen=True)
class Known:
    """What one version of an adapter answers to one question, alone.

    Attributes:
        text: The whole answer.
        sure: How much of it, in characters, comes before the first tie.
    """

    text: str
    sure: int


@dataclass
class Seen:
    """What came of the load."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)


def write_adapter(base: Base, directory: Path, seed: int, *, size: float = 0.03) -> Path:
    """A LoRA adapter of random weights, as HF PEFT writes them; ranks and targets vary."""
    generator = torch.Generator().manual_seed(seed)
    rank = (4, 8, 8, 16)[seed % 4]
    targets = [["q_proj", "v_proj"], ["q_proj", "k_proj", "v_proj", "o_proj"], ["down_proj"]][seed % 3]
    tensors = {}
    for path, module in base.model.named_modules():
        if isinstance(module, torch.nn.Linear) and path.rpartition(".")[2] in targets:
            for name, shape in (
                ("lora_A", (rank, module.in_features)),
                ("lora_B", (module.out_features, rank)),
            ):
                tensors[f"base_model.model.{path}.{name}.weight"] = size * torch.randn(
                    shape, generator=generator
                )
    LoraConfig(
        r=rank, lora_alpha=rank, target_modules=targets, task_type="CAUSAL_LM", inference_mode=True
    ).save_pretrained(directory)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    return directory


class World:
    """The base, a store of adapters, two versions of some of them, and what each answers alone."""

    def __init__(self, base: Base, folder: Path, adapters: int) -> None:
        self.base = base
        self.store = AdapterStore(folder / "store")
        self.names = [f"a{number}" for number in range(adapters)]
        self.versions: dict[str, list[Path]] = {}
        for number, name in enumerate(self.names):
            seeds = [number] if number % 8 else [number, 1000 + number]
            made = [write_adapter(base, folder / f"{name}-{seed}", seed) for seed in seeds]
            self.versions[name] = [self.store.add(one, name=name, move=True, base=base).path for one in made]
        wild = write_adapter(base, folder / "wild", 1, size=1e30)
        self.store.add(wild, name="wild", base=base)
        broken = write_adapter(base, folder / "broken", 2)
        tensors = load_file(broken / "adapter_model.safetensors")
        next(iter(tensors.values()))[0, 0] = float("nan")
        save_file(tensors, broken / "adapter_model.safetensors")
        self.store.add(broken, name="broken", base=base)
        self.answers: dict[tuple[str, str, int], Known] = {}

    def learn(self) -> None:
        """Have every version answer every question with no other adapter running."""
        encoder = Encoder(self.base.tokenizer, max_length=None)
        prompts = {question: encoder.prompt_ids([Segment("user", question)]) for question in QUESTIONS}
        engine = Engine(self.base.model, self.base.tokenizer, end_ids=[encoder.end_id])
        for path in [None, *(path for paths in self.versions.values() for path in paths)]:
            adapter = None if path is None else read_resident(path)
            name = "base" if adapter is None else f"adapter_{adapter.digest[:12]}"
            if adapter is not None:
                engine.add_adapter(name, adapter)
            own = None if adapter is None else name
            params = SamplingParams(max(LIMITS), logprobs=2)
            requests = [Request(question, ids, params, own) for question, ids in prompts.items()]
            for completion in engine.generate(requests):
                for limit in LIMITS:
                    self.answers[name, completion.request_id, limit] = self._known(completion, limit)
            if adapter is not None:
                engine.remove_adapter(name)

    def _known(self, completion: Completion, limit: int) -> Known:
        tokenizer = self.base.tokenizer
        tokens = completion.token_ids[:limit]
        text = decode(tokenizer, tokens, ())
        margins = [one.top[0][1] - one.top[1][1] for one in completion.logprobs[:limit]]
        tied = next((place for place, margin in enumerate(margins) if margin < TIE), None)
        if tied is None:
            return Known(text, len(text))
        return Known(text, len(decode(tokenizer, tokens[:tied], ()).rstrip("\ufffd")))


class Load:
    """Clients and operators at work."""

    def __init__(self, world: World, server: Server, seconds: float, seed: int) -> None:
        self.world = world
        self.server = server
        self.seen = Seen()
        self.began = time.perf_counter()
        self.end = self.began + seconds
        self.seed = seed

    async def run(self, clients: int) -> None:
        """All of it, until the time is over."""
        work: list[Callable[[random.Random], Coroutine[Any, Any, None]]] = [
            *[self.ask] * clients,
            self.operate,
            self.replace,
            self.disturb,
            self.watch,
        ]

        async def again(number: int, do: Callable[[random.Random], Coroutine[Any, Any, None]]) -> None:
            draw = random.Random(f"{self.seed} {number}")
            while time.perf_counter() < self.end:
                await do(draw)

        await asyncio.gather(*(again(number, do) for number, do in enumerate(work)))

    async def ask(self, draw: random.Random) -> None:
        """One question."""
        question, limit = draw.choice(QUESTIONS), draw.choice(LIMITS)
        name = (
            draw.choice([*self.world.names, "base"])
            if draw.random() < 0.98
            else draw.choice(["wild", "broken"])
        )
        streamed = draw.random() < 0.6
        stop_after = draw.randrange(limit) if streamed and draw.random() < 0.15 else None
        body = {
            "model": name,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": limit,
            "temperature": 0,
            "stream": streamed,
        }
        began = time.perf_counter()
        reply = await call(
            self.server.port, "POST", "/v1/chat/completions", body, key=KEY, stop_after=stop_after
        )
        if reply.status == 429:
            self.seen.counts["refused with 429"] += 1
            await asyncio.sleep(draw.random())
            return
        if name in ("wild", "broken"):
            refused = reply.status == 409 or (reply.events and "error" in reply.events[-1])
            self.seen.counts["broken adapters refused"] += bool(refused or stop_after is not None)
            if not refused and stop_after is None:
                self.seen.wrong.append(f"{name} was answered: {reply}")
            return
        if reply.status != 200 or any("error" in event for event in reply.events):
            self.seen.wrong.append(f"{name}: {reply.status} {reply.body or reply.events[-1:]}")
            return
        if streamed:
            text = "".join(event["choices"][0]["delta"].get("content", "") for event in reply.events)
            version = reply.events[0]["system_fingerprint"]
            times = [
                at
                for event, at in zip(reply.events, reply.times, strict=True)
                if event["choices"][0]["delta"].get("content")
            ]
            if times:
                self.seen.first.append(times[0] - began)
                self.seen.between += [after - before for before, after in pairwise(times)]
        else:
            text, version = reply.body["choices"][0]["message"]["content"], reply.body["system_fingerprint"]
            self.seen.counts["tokens of whole answers"] += reply.body["usage"]["completion_tokens"]
        self.check(name, version, question, limit, text, cut=stop_after is not None)

    def check(self, name: str, version: str, question: str, limit: int, text: str, *, cut: bool) -> None:
        """Compare an answer with what this version says alone."""
        known = self.world.answers.get((version, question, limit))
        if known is None:
            self.seen.wrong.append(f"{name} was answered by {version}, which nobody knows")
            return
        expected = known.text[: len(text)] if cut else known.text
        if text == expected:
            self.seen.counts["cancelled, right so far" if cut else "right"] += 1
        elif known.sure < len(known.text) and text[: known.sure] == known.text[: min(known.sure, len(text))]:
            self.seen.counts["right up to a tie"] += 1
        else:
            self.seen.wrong.append(
                f"{name} ({version}), {question!r}, {limit}: {text!r}, expected {expected!r}"
            )

    async def operate(self, draw: random.Random) -> None:
        """An operator at work."""
        verb = draw.choice(["load", "unload", "pin", "unpin", "verify", "reload"])
        path = (
            "/v1/adapters/reload"
            if verb == "reload"
            else f"/v1/adapters/{draw.choice(self.world.names)}/{verb}"
        )
        reply = await call(self.server.port, "POST", path, key=KEY)
        # 409: it is answering; 429: too many are in use.
        if reply.status not in (200, 409, 429):
            self.seen.wrong.append(f"{path}: {reply.status} {reply.body}")
        self.seen.counts[verb] += 1
        await asyncio.sleep(draw.random() * 0.5)

    async def replace(self, draw: random.Random) -> None:
        """Another version takes a name."""
        name = draw.choice([name for name, paths in self.world.versions.items() if len(paths) > 1])
        path = draw.choice(self.world.versions[name])
        await asyncio.to_thread(self.world.store.alias, path.name, name, move=True)
        self.seen.counts["new version"] += 1
        await asyncio.sleep(draw.random())

    async def disturb(self, draw: random.Random) -> None:
        """Requests that aren't any."""
        method, path, body = draw.choice(MALFORMED)
        reply = await call(self.server.port, method, path, body, key=KEY)
        if not 400 <= reply.status < 500:
            self.seen.wrong.append(f"malformed {method} {path}: {reply.status} {reply.body}")
        self.seen.counts["malformed"] += 1
        if draw.random() < 0.3:  # half a request, and silence
            _, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{"
            )
            await asyncio.sleep(draw.random() * 0.2)
            writer.close()
        await asyncio.sleep(draw.random() * 0.3)

    async def watch(self, _: random.Random) -> None:
        """How much memory the server has."""
        self.seen.memory.append((time.perf_counter() - self.began, self.server.memory()))
        await asyncio.sleep(1)


def report(load: Load, seconds: float) -> bool:
    """Print what was seen; whether it is as it must be."""
    seen = load.seen
    for name, count in sorted(seen.counts.items()):
        print(f"{count:9,} {name}")
    for name, times in (("first token", seen.first), ("between tokens", seen.between)):
        if len(times) > 1:
            cuts = statistics.quantiles(times, n=100)
            print(
                f"{name}: p50 {cuts[49] * 1000:.0f} ms, p99 {cuts[98] * 1000:.0f} ms ({len(times):,} of them)"
            )
    # Warm-up is the first third. After it the memory may neither have a trend nor jump.
    warm = [size for at, size in seen.memory if at > seconds / 3]
    half = len(warm) // 2
    before, after = statistics.median(warm[:half]), statistics.median(warm[half:])
    growth = after / before - 1
    print(
        f"memory after warm-up: {before / 2**20:.0f} MiB in the first half, {after / 2**20:.0f} MiB in the second "
        f"({growth:+.1%}); lowest {min(warm) / 2**20:.0f}, highest {max(warm) / 2**20:.0f}"
    )
    tenths = [
        [size for at, size in seen.memory if tenth <= 10 * at / seconds < tenth + 1] for tenth in range(10)
    ]
    print("memory in each tenth, MiB:", *(f"{statistics.median(one) / 2**20:.0f}" for one in tenths if one))
    print(f"wrong: {len(seen.wrong)}")
    for line in dict.fromkeys(line[:600] for line in seen.wrong[:200]):
        print("   ", line)
    return not seen.wrong and growth < 0.02


def tiny_base(folder: Path) -> str:
    """A base of the embedded one's vocabulary, with two small layers, for trying this script."""
    from transformers import LlamaConfig, LlamaForCausalLM

    embedded = load_base("embedded")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=embedded.model.config.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    embedded.tokenizer.save_pretrained(folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--adapters", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a base of two small layers, to try this script")
    options = parser.parse_args()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        spec = tiny_base(folder / "base") if options.tiny else "embedded"
        base = load_base(spec)
        world = World(base, folder, options.adapters)
        began = time.perf_counter()
        world.learn()
        print(f"{len(world.answers):,} answers known after {time.perf_counter() - began:.0f} s", flush=True)
        tensors = sum(entry.nbytes for entry in world.store.entries())
        # Room for two thirds of the adapters, so that they also make room for each other.
        memory = max(1, tensors * 2 // 3 >> 20)
        port = free_port()
        command = [shutil.which("manytune") or "manytune", "serve", "--base", spec, "--base-name", "base"]
        command += ["--adapters", str(world.store.root), "--port", str(port), "--adapter-memory", str(memory)]
        watch = LoadWatch()
        log = folder / "log"
        with served(command, port=port, ready="/readyz", log=log, MANYTUNE_ADMIN_KEY=KEY) as server:
            print(f"ready after {server.started_in:.1f} s, {server.memory() / 2**20:.0f} MiB", flush=True)
            load = Load(world, server, options.minutes * 60, options.seed)
            asyncio.run(load.run(options.clients))
            alive = asyncio.run(call(port, "GET", "/healthz")).status == 200
            metrics = asyncio.run(call(port, "GET", "/metrics", key=KEY)).body
        print(
            f"{options.clients} clients, {options.adapters} adapters, {options.minutes:g} minutes; {watch.stop()}"
        )
        right = report(load, options.minutes * 60)
        tokens = sum(
            float(line.rpartition(" ")[2])
            for line in metrics.splitlines()
            if line.startswith("manytune_completion_tokens_total")
        )
        print(f"{tokens:,.0f} tokens of answers: {tokens / options.minutes / 60:.0f} a second")
        failures = [line for line in log.read_text().splitlines() if '"level": "error"' in line]
        print(f"alive at the end: {alive}; errors in its log: {len(failures)}")
        for line in failures[:5]:
            print("   ", json.dumps(json.loads(line))[:600])
        sys.exit(0 if right and alive and not failures else 1)


if __name__ == "__main__":
    main()
