"""Tokens a second for many adapters over one base, compared with HF PEFT's `adapter_names=` batch and transformers' own.

    python benchmarks/serving.py [--rounds N] [--peer-all-linear]

32 requests with prompts of 16 to 64 tokens ask for 32 to 64 new tokens each, greedily. Every system answers the same
requests in every round, in turn; a row's figure is the tokens that were asked for, divided by the median time of its
rounds. A static batch runs until its longest answer is done, as it can't know better.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from machine import LoadWatch, gemm_gflops
from safetensors.torch import save_file
from transformers import GenerationConfig

from manytune.engine.engine import Engine
from manytune.engine.request import Request, SamplingParams
from manytune.methods.lora.config import LoraConfig
from manytune.store.base import Base, load_base
from manytune.store.resident import ResidentAdapter, read_resident

REQUESTS = 32
RANK = 8
TARGETS = {
    "q,v": ["q_proj", "v_proj"],
    "all-linear": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
#: What is required of each row, as a share of another row's tokens a second.
REQUIRED = (
    ("engine, 32 adapters, q,v", "engine, base", 0.85),
    ("engine, 32 adapters, all-linear", "engine, base", 0.7),
    ("engine, base", "transformers, static batch", 1.3),
    ("engine, 32 adapters, q,v", "peft, 32 adapters, q,v", 1.4),
    ("engine, 32 adapters, all-linear", "peft, 32 adapters, all-linear", 5.0),
)


@dataclass(frozen=True)
class Asked:
    """One request: its prompt, and how many tokens it wants."""

    prompt: tuple[int, ...]
    tokens: int


def asked_for(vocabulary: int) -> list[Asked]:
    generator = torch.Generator().manual_seed(0)

    def whole(low: int, high: int, count: int = 1) -> list[int]:
        return torch.randint(low, high, (count,), generator=generator).tolist()

    return [Asked(tuple(whole(100, vocabulary, whole(16, 65)[0])), whole(32, 65)[0]) for _ in range(REQUESTS)]


def write_adapters(base: Base, directory: Path, targets: Sequence[str]) -> list[Path]:
    """Adapters of random weights, as files that both read."""
    paths = []
    for number in range(REQUESTS):
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for path, module in base.model.named_modules():
            if isinstance(module, torch.nn.Linear) and path.rpartition(".")[2] in targets:
                for name, shape in (
                    ("lora_A", (RANK, module.in_features)),
                    ("lora_B", (module.out_features, RANK)),
                ):
                    values = 0.02 * torch.randn(shape, generator=generator)
                    tensors[f"base_model.model.{path}.{name}.weight"] = values
        own = directory / str(number)
        config = LoraConfig(
            r=RANK, lora_alpha=RANK, target_modules=list(targets), task_type="CAUSAL_LM", inference_mode=True
        )
        config.save_pretrained(own)
        save_file(tensors, own / "adapter_model.safetensors", metadata={"format": "pt"})
        paths.append(own)
    return paths


def engine_run(engine: Engine, asked: Sequence[Asked], adapters: Sequence[str | None]) -> Callable[[], None]:
    requests = [
        Request(str(number), one.prompt, SamplingParams(one.tokens, ignore_eos=True), adapter)
        for number, (one, adapter) in enumerate(zip(asked, adapters, strict=True))
    ]

    def run() -> None:
        answers = engine.generate(requests)
        assert [len(answer.token_ids) for answer in answers] == [one.tokens for one in asked]

    return run


def static_run(model: Any, asked: Sequence[Asked], **options: Any) -> Callable[[], None]:
    width = max(len(one.prompt) for one in asked)
    ids = torch.zeros((len(asked), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, one in enumerate(asked):
        ids[row, width - len(one.prompt) :] = torch.tensor(one.prompt)
        mask[row, width - len(one.prompt) :] = 1
    longest = max(one.tokens for one in asked)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=longest,
        min_new_tokens=longest,
        pad_token_id=0,
        eos_token_id=model.config.eos_token_id,
    )

    def run() -> None:
        with torch.inference_mode():
            model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **options)

    return run


def peft_model(base: Any, paths: Sequence[Path]) -> Any:
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(base, str(paths[0]), adapter_name="a0", low_cpu_mem_usage=True)
        for number, path in enumerate(paths[1:], 1):
            model.load_adapter(str(path), adapter_name=f"a{number}", low_cpu_mem_usage=True)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--peer-all-linear", action="store_true", help="run HF PEFT with all-linear too: a minute a round"
    )
    options = parser.parse_args()
    base = load_base("embedded")
    asked = asked_for(base.model.config.vocab_size)
    tokens = sum(one.tokens for one in asked)
    engine = Engine(base.model, base.tokenizer, max_batch=REQUESTS)
    with TemporaryDirectory() as scratch:
        runs: dict[str, Callable[[], None]] = {
            "engine, base": engine_run(engine, asked, [None] * REQUESTS),
            "transformers, static batch": static_run(base.model, asked),
        }
        peers: dict[str, Callable[[], None]] = {}
        for name, targets in TARGETS.items():
            paths = write_adapters(base, Path(scratch) / name, targets)
            resident: list[ResidentAdapter] = [read_resident(path) for path in paths]
            for number, adapter in enumerate(resident):
                engine.add_adapter(f"{name} {number}", adapter)
            names = [f"{name} {number}" for number in range(REQUESTS)]
            runs[f"engine, 32 adapters, {name}"] = engine_run(engine, asked, names)
            if name == "q,v" or options.peer_all_linear:
                # A base of its own: HF PEFT changes the model that it is attached to.
                model = peft_model(load_base("embedded").model, paths)
                names = [f"a{number}" for number in range(REQUESTS)]
                peers[f"peft, 32 adapters, {name}"] = static_run(model, asked, adapter_names=names)
        runs |= peers
        times: dict[str, list[float]] = {name: [] for name in runs}
        watch = LoadWatch()
        for _ in range(options.rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
                print(f"    {name}: {times[name][-1]:.2f} s", flush=True)
        load = watch.stop()
    print(f"\n{load}; matrix products {gemm_gflops():.0f} GFLOP/s, {torch.get_num_threads()} threads")
    print(f"{REQUESTS} requests, {tokens} tokens asked for, {options.rounds} rounds\n")
    speed = {name: tokens / statistics.median(own) for name, own in times.items()}
    for name, value in speed.items():
        print(f"{name:36s} {value:8.1f} tokens/s")
    print()
    for name, other, required in REQUIRED:
        if name in speed and other in speed:
            ratio = speed[name] / speed[other]
            verdict = "ok" if ratio >= required else "MISSED"
            print(f"{name} / {other}: {ratio:.2f}x (required {required}x) {verdict}")


if __name__ == "__main__":
    main()
