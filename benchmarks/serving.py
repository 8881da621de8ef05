"""Tokens a second for many adapters over one base, compared with HF PEFT's `adapter_names=` and transformers' own.

    python benchmarks/serving.py [--rounds N] [--peer-all-linear] [--only PART]

32 requests with prompts of 16 to 64 tokens ask for 32 to 64 new tokens each, greedily. Every system answers the same
requests in every round, in turn; a row's figure is the tokens that were asked for, divided by the median time of its
rounds. A static batch runs until its longest answer is done, as it can't know better.

`PeftModel` rows: one call of `model.generate(adapter_names=[...])` for 32 prompts of 16 tokens and 12 new tokens each,
compared with the same call with adapters disabled, and with HF PEFT's own call. Each is called once before, which isn't
counted but printed: manytune's first call makes copies of the base's weights, which later ones use.

`T5` rows: a T5 of FLAN-T5-small's shape with random weights. 64 prompts of 16 to 256 tokens ask for 4 to 64 new tokens,
both drawn log-uniformly: most are short, some aren't. transformers answers them in batches of 32, in their order.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
import torch
from machine import LoadWatch, gemm_gflops
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedModel, T5Config, T5ForConditionalGeneration

import manytune
from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams
from manytune.methods.lora.config import LoraConfig
from manytune.store.base import load_base
from manytune.store.resident import read_resident

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
    ("PeftModel, 32 adapters, q,v", "PeftModel, disabled, q,v", 0.85),
    ("PeftModel, 32 adapters, all-linear", "PeftModel, disabled, all-linear", 0.7),
    # The base's products alone, which both compute, take more than a quarter of HF PEFT's call there.
    ("PeftModel, 32 adapters, q,v", "peft's call, 32 adapters, q,v", 2.0),
    ("PeftModel, 32 adapters, all-linear", "peft's call, 32 adapters, all-linear", 4.0),
    ("T5, 32 adapters, q,v", "T5, base", 0.75),
    ("T5, 32 adapters, q,v", "T5, transformers, static", 2.0),
)
#: What `--only` may name.
PARTS = ("engine", "calls", "encoder-decoder")
#: What the adapters of the models are called.
NAMES = [f"a{number}" for number in range(REQUESTS)]
#: What one call of `generate(adapter_names=)` reads and writes for each of its rows, in tokens.
CALL = (16, 12)


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


def write_adapters(
    model: PreTrainedModel, directory: Path, targets: Sequence[str], count: int = REQUESTS
) -> list[Path]:
    """Adapters of random weights, as files that both read."""
    paths = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for path, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and path.rpartition(".")[2] in targets:
                for name, shape in (
                    ("lora_A", (RANK, module.in_features)),
                    ("lora_B", (module.out_features, RANK)),
                ):
                    values = 0.02 * torch.randn(shape, generator=generator)
                    tensors[f"base_model.model.{path}.{name}.weight"] = values
        own = directory / str(number)
        task = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
        config = LoraConfig(
            r=RANK, lora_alpha=RANK, target_modules=list(targets), task_type=task, inference_mode=True
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


def with_adapters(library: Any, paths: Sequence[Path]) -> Any:
    """A model with all adapters, on a base of its own: attaching changes the model."""
    base = load_base("embedded").model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = library.PeftModel.from_pretrained(
            base, str(paths[0]), adapter_name="a0", low_cpu_mem_usage=True
        )
        for number, path in enumerate(paths[1:], 1):
            model.load_adapter(str(path), adapter_name=f"a{number}", low_cpu_mem_usage=True)
    return model.eval()


def disabled(model: Any, run: Callable[[], None]) -> Callable[[], None]:
    def run_disabled() -> None:
        with model.disable_adapter():
            run()

    return run_disabled


def engine_runs(scratch: Path, *, peer_all_linear: bool) -> dict[str, Callable[[], None]]:
    base = load_base("embedded")
    asked = asked_for(base.model.config.vocab_size)
    engine = Engine(base.model, base.tokenizer, EngineOptions(max_batch=REQUESTS, speculation="off"))
    runs: dict[str, Callable[[], None]] = {
        "engine, base": engine_run(engine, asked, [None] * REQUESTS),
        "transformers, static batch": static_run(base.model, asked),
    }
    peers: dict[str, Callable[[], None]] = {}
    for name, targets in TARGETS.items():
        paths = write_adapters(base.model, scratch / name, targets)
        for number, path in enumerate(paths):
            engine.add_adapter(f"{name} {number}", read_resident(path))
        names = [f"{name} {number}" for number in range(REQUESTS)]
        runs[f"engine, 32 adapters, {name}"] = engine_run(engine, asked, names)
        if name == "q,v" or peer_all_linear:
            peers[f"peft, 32 adapters, {name}"] = static_run(
                with_adapters(peft, paths), asked, adapter_names=NAMES
            )
    return {**runs, **peers}


def call_runs(scratch: Path) -> dict[str, Callable[[], None]]:
    base = load_base("embedded")
    generator = torch.Generator().manual_seed(1)
    asked = [
        Asked(tuple(torch.randint(100, 40000, (CALL[0],), generator=generator).tolist()), CALL[1])
        for _ in range(REQUESTS)
    ]
    runs: dict[str, Callable[[], None]] = {}
    for name, targets in TARGETS.items():
        paths = write_adapters(base.model, scratch / f"call {name}", targets)
        model = with_adapters(manytune, paths)
        runs[f"PeftModel, disabled, {name}"] = disabled(model, static_run(model, asked))
        runs[f"PeftModel, 32 adapters, {name}"] = static_run(model, asked, adapter_names=NAMES)
        runs[f"peft's call, 32 adapters, {name}"] = static_run(
            with_adapters(peft, paths), asked, adapter_names=NAMES
        )
    return runs


def asked_of_t5() -> list[Asked]:
    """Twice as many requests as run at once, so that those that end make room."""
    generator = torch.Generator().manual_seed(2)

    def length(low: int, high: int) -> int:
        share = torch.rand(1, generator=generator).item()
        return round(math.exp(math.log(low) + share * math.log(high / low)))

    return [
        Asked(
            tuple(torch.randint(100, 32000, (length(16, 256),), generator=generator).tolist()), length(4, 64)
        )
        for _ in range(2 * REQUESTS)
    ]


def t5_runs(scratch: Path) -> dict[str, Callable[[], None]]:
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=32128,
            d_model=512,
            d_kv=64,
            d_ff=1024,
            num_layers=8,
            num_heads=6,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            decoder_start_token_id=0,
        )
    ).eval()
    asked = asked_of_t5()
    # Any tokenizer does: the ids are given, and nobody reads the texts.
    engine = Engine(model, load_base("embedded").tokenizer, EngineOptions(max_batch=REQUESTS))
    for name, path in zip(NAMES, write_adapters(model, scratch / "t5", ["q", "v"]), strict=True):
        engine.add_adapter(name, read_resident(path))
    batches = [static_run(model, asked[start : start + REQUESTS]) for start in range(0, len(asked), REQUESTS)]

    def static() -> None:
        for batch in batches:
            batch()

    return {
        "T5, base": engine_run(engine, asked, [None] * len(asked)),
        "T5, 32 adapters, q,v": engine_run(engine, asked, NAMES * 2),
        "T5, transformers, static": static,
    }


def is_call(run: str) -> bool:
    """Whether a run is one call of a `PeftModel`, manytune's or HF PEFT's."""
    return run.startswith(("PeftModel", "peft's call"))


def seconds(run: Callable[[], None]) -> float:
    """How long a run takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def tokens_of(run: str) -> int:
    """New tokens of a run."""
    if run.startswith("T5"):
        return sum(one.tokens for one in asked_of_t5())
    if is_call(run):
        return REQUESTS * CALL[1]
    return sum(one.tokens for one in asked_for(49152))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--peer-all-linear", action="store_true", help="run HF PEFT with all-linear too: a minute a round"
    )
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        runs: dict[str, Callable[[], None]] = {}
        if options.only in (None, "engine"):
            runs |= engine_runs(Path(name), peer_all_linear=options.peer_all_linear)
        if options.only in (None, "calls"):
            runs |= call_runs(Path(name))
        if options.only in (None, "encoder-decoder"):
            runs |= t5_runs(Path(name))
        times: dict[str, list[float]] = {name: [] for name in runs}
        watch = LoadWatch()
        for name, run in runs.items():
            if is_call(name):
                print(f"    {name}, the first call: {seconds(run):.2f} s", flush=True)
        for _ in range(options.rounds):
            for name, run in runs.items():
                times[name].append(seconds(run))
                print(f"    {name}: {times[name][-1]:.2f} s", flush=True)
        load = watch.stop()
    print(f"\n{load}; matrix products {gemm_gflops():.0f} GFLOP/s, {torch.get_num_threads()} threads")
    print(f"{REQUESTS} requests, {options.rounds} rounds\n")
    speed = {name: tokens_of(name) / statistics.median(own) for name, own in times.items()}
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
