"""`manytune serve --engine vllm` with 64 adapters: are its greedy tokens those of manytune's own engine?

    python benchmarks/vllm_handover.py --vllm PATH [--adapters N] [--tokens N]

64 random LoRA adapters of ranks 2 to 8 on all linear layers of SmolLM2-135M, which change its answers, go into a store
that is handed over to vLLM, in float32. Each is asked for text and for a conversation; then one gets a new version
while it answers. Tokens are compared with those of manytune's engine in this process, one by one.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from serving_client import Reply, call, free_port, served

from manytune.data.encoding.encode import Encoder
from manytune.data.templates import Segment
from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams
from manytune.methods.lora.config import LoraConfig
from manytune.model.attach import get_peft_model
from manytune.store.adapters import save_adapter
from manytune.store.base import Base, load_base
from manytune.store.manifest import Description
from manytune.store.resident import read_resident
from manytune.store.store import AdapterStore

PROMPTS = (
    "The three largest rivers of Europe are",
    "To make a good soup, begin with",
    "In the year 1969,",
    "A function that adds two numbers:",
)
SCALE = 0.08  # of B's values, with A's as they are drawn: every answer changes
RANKS = (2, 4, 8)


@dataclass
class Compared:
    """Answers that were compared.

    Attributes:
        answers: How many.
        equal: How many of them were equal, token by token.
        tokens: How many tokens they had.
        changed: How many were not the base's.
    """

    answers: int = 0
    equal: int = 0
    tokens: int = 0
    changed: int = 0

    def add(self, name: str, found: Sequence[int], expected: Sequence[int], base: Sequence[int]) -> None:
        """Count one."""
        self.answers += 1
        self.tokens += len(expected)
        self.equal += list(found) == list(expected)
        self.changed += list(expected) != list(base)
        if list(found) != list(expected):
            print(f"  {name}: {list(found)}\n  expected {list(expected)}", file=sys.stderr)

    def __str__(self) -> str:
        return (
            f"{self.equal} of {self.answers} answers equal, {self.tokens} tokens; "
            f"{self.changed} differ from the base's"
        )


def adapter(base: Base, directory: Path, seed: int) -> Path:
    """Write one adapter with random values."""
    torch.manual_seed(seed)
    rank = RANKS[seed % len(RANKS)]
    model = get_peft_model(
        base.model,
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(SCALE * torch.randn(parameter.shape))
    save_adapter(model, directory, Description(method="lora", base=base.name, fingerprint=base.fingerprint))
    model.unload()
    return directory


class Own:
    """manytune's engine over the same store.

    Args:
        base: The base.
        store: The adapters.
    """

    def __init__(self, base: Base, store: AdapterStore) -> None:
        self._engine = Engine(base.model, base.tokenizer, EngineOptions(max_batch=8))
        self._store = store
        self._encoder = Encoder(base.tokenizer, max_length=None)
        self._plain = Encoder(base.tokenizer, max_length=None, chat=False, special_tokens_in_text=True)

    def tokens(self, digests: Sequence[str | None], prompt: str, *, chat: bool, most: int) -> list[list[int]]:
        """The greedy tokens of one prompt for each version; None is the base."""
        for digest in {one for one in digests if one is not None} - set(self._engine.adapters):
            self._engine.add_adapter(digest, read_resident(self._store.directory(digest)))
        encoder = self._encoder if chat else self._plain
        ids = encoder.prompt_ids([Segment("user", prompt)])
        params = SamplingParams(max_new_tokens=most, ignore_eos=True)
        requests = [Request(str(at), ids, params, digest) for at, digest in enumerate(digests)]
        return [list(one.token_ids) for one in self._engine.generate(requests)]


def body(name: str, prompt: str, *, chat: bool, most: int, **more: object) -> dict[str, object]:
    """A request for greedy tokens."""
    asked: dict[str, object] = (
        {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    )
    greedy = {"temperature": 0, "max_tokens": most, "ignore_eos": True, "return_token_ids": True}
    return {"model": name, **asked, **greedy, **more}


def route(*, chat: bool) -> str:
    """Where it goes."""
    return "/v1/chat/completions" if chat else "/v1/completions"


def answered(reply: Reply) -> list[int]:
    """The tokens of an answer."""
    if reply.status != 200:
        sys.exit(f"status {reply.status}: {reply.body}")
    tokens: list[int] = reply.body["choices"][0]["token_ids"]
    return tokens


async def ask_all(
    port: int, names: Sequence[str], prompts: Sequence[str], *, chat: bool, most: int
) -> list[Any]:
    """The tokens of all adapters, eight requests at once."""
    places = asyncio.Semaphore(8)

    async def one(name: str, prompt: str) -> list[int]:
        async with places:
            reply = await call(
                port, "POST", route(chat=chat), body(name, prompt, chat=chat, most=most), key="root"
            )
        return answered(reply)

    return await asyncio.gather(*(one(*pair) for pair in zip(names, prompts, strict=True)))


async def across_versions(
    port: int, store: AdapterStore, name: str, other: Path, most: int
) -> tuple[list[int], list[int]]:
    """The tokens of an answer during which its name gets another version, and of the next answer."""
    first = asyncio.Event()

    async def stream() -> list[int]:
        reply = await call(
            port,
            "POST",
            "/v1/completions",
            body(name, PROMPTS[0], chat=False, most=4 * most, stream=True),
            key="root",
        )
        first.set()
        return [token for event in reply.events for token in event["choices"][0]["token_ids"] or ()]

    running = asyncio.create_task(stream())
    while not await streaming(port):
        await asyncio.sleep(0.01)
    assert not first.is_set(), "the answer ended before the name got another version: give more --tokens"
    await asyncio.to_thread(store.add, other, name=name, move=True)
    reply = await call(
        port, "POST", "/v1/completions", body(name, PROMPTS[0], chat=False, most=most), key="root"
    )
    ended_before = first.is_set()
    tokens = await running
    print(f"the new version answered {'after' if ended_before else 'before'} the old one's answer had ended")
    return tokens, answered(reply)


async def streaming(port: int) -> bool:
    """Whether a request runs."""
    listed = await call(port, "GET", "/v1/adapters", key="root")
    return any(one["requests"] for one in listed.body["data"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vllm", required=True, help="vLLM's executable")
    parser.add_argument("--adapters", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=16)
    options = parser.parse_args()
    base = load_base("embedded", dtype="float32")
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        store = AdapterStore(folder / "store")
        names = [f"adapter-{number:02d}" for number in range(options.adapters)]
        for seed, name in enumerate(names):
            store.add(adapter(base, folder / name, seed), name=name)
        other = adapter(base, folder / "other", 1000)
        run(options, base, store, names, other, folder)


def run(
    options: argparse.Namespace, base: Base, store: AdapterStore, names: list[str], other: Path, folder: Path
) -> None:
    """Start the server, ask, compare, and print."""
    digests = [store.resolve(name) for name in names]
    prompts = [PROMPTS[at % len(PROMPTS)] for at in range(len(names))]
    most, port = options.tokens, free_port()
    own = Own(base, store)
    command = [
        *[
            str(Path(sys.executable).with_name("manytune")),
            "serve",
            "--engine",
            "vllm",
            "--vllm",
            options.vllm,
        ],
        *["--base", "embedded", "--adapters", str(store.root), "--dtype", "float32", "--port", str(port)],
        *["--", "--max-model-len", "512", "--max-num-seqs", "8"],
    ]
    # GiB for keys and values; without it vLLM takes most of the machine's memory.
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    log = folder / "log"
    with served(
        command, port=port, ready="/readyz", log=log, MANYTUNE_ADMIN_KEY="root", **environment
    ) as server:
        print(f"started in {server.started_in:.0f} s", flush=True)
        for chat in (False, True):
            began = time.perf_counter()
            found = asyncio.run(ask_all(port, names, prompts, chat=chat, most=most))
            seconds = time.perf_counter() - began
            compared = Compared()
            for prompt in PROMPTS:
                of_prompt = [at for at, one in enumerate(prompts) if one == prompt]
                expected = own.tokens([digests[at] for at in of_prompt], prompt, chat=chat, most=most)
                (plain,) = own.tokens([None], prompt, chat=chat, most=most)
                for at, tokens in zip(of_prompt, expected, strict=True):
                    compared.add(names[at], found[at], tokens, plain)
            print(f"{'conversations' if chat else 'texts':14s} {compared} ({seconds:.0f} s)", flush=True)
        listed = asyncio.run(call(port, "GET", "/v1/adapters", key="root")).body["data"]
        print(f"vLLM has {sum(one['resident'] for one in listed)} of {len(listed)} adapters")
        old, new = asyncio.run(across_versions(port, store, names[0], other, most))
        compared = Compared()
        (plain,) = own.tokens([None], PROMPTS[0], chat=False, most=4 * most)
        before, after = own.tokens(
            [digests[0], store.resolve(names[0])], PROMPTS[0], chat=False, most=4 * most
        )
        compared.add("the former version, while it was replaced", old, before, plain)
        compared.add("the new version", new, after[:most], plain[:most])
        print(f"{'versions':14s} {compared}")


if __name__ == "__main__":
    main()
