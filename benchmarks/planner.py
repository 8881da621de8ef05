"""What `manytune plan` says, compared with what trainings and a server take here.

    python benchmarks/planner.py [--memory-only] [--only NAME ...] [--rounds N] [--json FILE]

Each configuration runs in a process of its own for its memory and in another for its time, once a round; the round
with the median ratio counts. A training is `manytune train`'s, its peak memory the one that the trainer reports. The
estimate gets the lengths of the rows, and the machine's bandwidth and FLOP/s in products of the model's shapes; the
share of these that is reached is the planner's own.

A machine that others use, too, is faster in one minute than in the next. So products are measured before the first step
and after each, and a step is compared with the estimate at the mean of the two measurements around it. The step counts
whose product of time and FLOP/s is the median.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

WITHIN = {"memory": 0.2, "time": 0.3}
STEPS = {"memory": 2, "time": 7}  # the optimizer's states come with the first; an odd number has a median
PRODUCT_ROWS, PRODUCT_SECONDS = 512, 0.5  # of inputs, which a batch has here; and of each measurement
WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "it",
    "as",
    "was",
    "with",
    "be",
    "by",
    "on",
    "not",
    "he",
)
END, UNKNOWN = "<end>", "<unk>"


@dataclass(frozen=True)
class Configuration:
    """One comparison.

    Attributes:
        name: What it is called.
        base: `embedded`, or `gpt2` for random weights of GPT-2's sizes.
        method: As in a recipe.
        batch_size: Rows of a step, or requests at once.
        prompt: Words of a row's own prompt.
        completion: Words of its completion, or tokens of an answer.
        shared: Words that four rows begin with in common.
        training: Further keys of the recipe's section.
        plan: Further keys of the plan's section.
        adapters: Adapters that a server mixes; None for a training.
    """

    name: str
    base: str
    method: dict[str, Any]
    batch_size: int
    prompt: int
    completion: int
    shared: int = 0
    training: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None
    adapters: int | None = None


CONFIGURATIONS = (
    Configuration("LoRA on q, v", "embedded", {"name": "lora", "r": 8}, 8, 160, 40),
    Configuration(
        "LoRA on all linear layers",
        "embedded",
        {"name": "lora", "r": 16, "target_modules": "all-linear"},
        4,
        320,
        64,
        training={"batching": "padding-free"},
    ),
    Configuration(
        "LoRA, four questions a document",
        "embedded",
        {"name": "lora", "r": 8, "target_modules": "all-linear"},
        8,
        16,
        32,
        shared=192,
        training={"group_prefixes": True},
    ),
    Configuration(
        "prefix tuning", "embedded", {"name": "prefix-tuning", "num_virtual_tokens": 20}, 8, 96, 32
    ),
    Configuration("full fine-tuning", "embedded", {"name": "full"}, 4, 192, 64),
    Configuration(
        "LoRA with checkpointing",
        "embedded",
        {"name": "lora", "r": 8, "target_modules": "all-linear"},
        8,
        256,
        64,
        training={"gradient_checkpointing": True},
        plan={"gradient_checkpointing": True},
    ),
    Configuration("LoRA on GPT-2", "gpt2", {"name": "lora", "r": 8}, 8, 128, 64),
    Configuration("serving 8 adapters", "embedded", {"name": "lora", "r": 8}, 16, 96, 64, adapters=8),
)


@dataclass(frozen=True)
class Comparison:
    """An estimate and its measurement: low, expected and high, and what was measured."""

    name: str
    what: str
    unit: str
    low: float
    expected: float
    high: float
    measured: float

    @property
    def ratio(self) -> float:
        """Expected over measured."""
        return self.expected / self.measured


def words(draw: random.Random, count: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(count))


def write_rows(path: Path, one: Configuration, count: int) -> None:
    draw = random.Random(0)
    rows, shared = [], ""
    for number in range(count):
        if number % 4 == 0:
            shared = words(draw, one.shared)
        prompt = f"{shared} {words(draw, one.prompt)}".strip()
        rows.append({"document": number // 4, "prompt": prompt, "completion": words(draw, one.completion)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def base_of(one: Configuration, scratch: Path) -> str:
    """The spec of the base; GPT-2's sizes with random weights are written first."""
    if one.base == "embedded":
        return "embedded"
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    target = scratch / "gpt2"
    GPT2LMHeadModel(GPT2Config(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)).save_pretrained(target)
    vocabulary = {word: place for place, word in enumerate([END, UNKNOWN, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, unk_token=UNKNOWN).save_pretrained(
        target
    )
    return str(target)


def config_of(spec: str) -> dict[str, Any]:
    from manytune.store.base_source import resolve

    return json.loads((Path(resolve(spec).location) / "config.json").read_text())


def bandwidth() -> float:
    """GB/s of copying, both directions counted."""
    import torch

    numbers, copy = torch.ones(1 << 26), torch.ones(1 << 26)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        copy.copy_(numbers)
        times.append(time.perf_counter() - started)
    return 2 * numbers.nbytes / min(times) / 1e9


def plan_of(one: Configuration, spec: str, flops: float, section: str, keys: dict[str, Any]) -> Any:
    from manytune.planner.plan import make_plan
    from manytune.planner.recipe import plan_from

    known = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    known += (
        "intermediate_size",
        "vocab_size",
        "tie_word_embeddings",
        "n_embd",
        "n_layer",
        "n_head",
        "n_positions",
    )
    config = {key: value for key, value in config_of(spec).items() if key in known}
    hardware = {
        "kind": "cpu",
        "memory_gib": 64,
        "bandwidth_gb_s": bandwidth(),
        "tflops": {"float32": flops / 1e12},
        "measured": True,
    }
    return make_plan(
        plan_from(
            {
                "model": config,
                "method": one.method,
                "hardware": hardware,
                section: {**keys, **(one.plan or {})},
            }
        )
    )


class Speed:
    """The machine's FLOP/s in products of a model's shapes, measured again and again while something else is timed.

    Args:
        model: Whose shapes. They are measured for the first time here.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._measured: list[float] = []
        self.measure()

    def measure(self, *_: Any) -> None:
        """Measure once more."""
        from manytune.training.speed.measured_flops import matmul_flops_per_second

        self._measured.append(
            matmul_flops_per_second(self._model, rows=PRODUCT_ROWS, seconds=PRODUCT_SECONDS)
        )

    def median(self, times: list[float]) -> tuple[float, float]:
        """Of times that were each taken between two measurements, the one of the median work, and its FLOP/s."""
        around = [(before + after) / 2 for before, after in itertools.pairwise(self._measured)]
        print("    GFLOP/s: " + ", ".join(f"{one / 1e9:.0f}" for one in self._measured), file=sys.stderr)
        print("    seconds: " + ", ".join(f"{one:.2f}" for one in times), file=sys.stderr)
        pairs = sorted(zip(times, around, strict=True), key=lambda pair: pair[0] * pair[1])
        return pairs[len(pairs) // 2]


def train(one: Configuration, scratch: Path, what: str) -> Comparison:
    """Train in this process."""
    from manytune.store.base import load_base
    from manytune.training.recipe import recipe_from
    from manytune.training.run import run

    spec = base_of(one, scratch)
    steps = STEPS[what]
    write_rows(scratch / "rows.jsonl", one, one.batch_size * steps)
    recipe = recipe_from(
        {
            "base": spec,
            "data": {
                "train": str(scratch / "rows.jsonl"),
                "validation": None,
                "prompt": "{{ prompt }}",
                "completion": " {{ completion }}",
                "group_by": "document" if one.shared else None,
            },
            "method": one.method,
            "training": {
                "max_steps": steps,
                "batch_size": one.batch_size,
                "checkpoint_every": None,
                **(one.training or {}),
            },
            "output": str(scratch / "run"),
        }
    )
    base = load_base(spec, dtype="float32") if what == "time" else None
    speed = None if base is None else Speed(base.model)
    report = None if speed is None else speed.measure  # called after each step, outside of its time
    training = run(recipe, base=base, report=report, measure_flops=False).training
    rows = one.batch_size * training.steps
    counts = training.counters
    virtual = one.method.get("num_virtual_tokens", 0) if one.method["name"] == "prompt-tuning" else 0
    keys = {
        "batch_size": one.batch_size,
        "tokens": counts.real_tokens / rows - virtual,
        "target_tokens": counts.logit_rows / rows,
        "weights": "float32",
    }
    if speed is None:
        found = plan_of(one, spec, 1e11, "training", keys).training
        for part in found.parts:
            print(f"    {part.name}: {part.bytes.expected / 2**20:,.0f} MiB", file=sys.stderr)
        return _compared(one.name, "memory", "MiB", found.memory / 2**20, training.peak_memory / 2**20)
    done = [0.0, *(report.step_seconds for report in training.step_reports)]
    seconds, flops = speed.median([after - before for before, after in itertools.pairwise(done)])
    found = plan_of(one, spec, flops, "training", keys).training
    return _compared(one.name, "time", "s a step", found.step_seconds, seconds)


def serve(one: Configuration, scratch: Path, what: str) -> Comparison:
    """Answer requests in this process."""
    import torch
    from peft import LoraConfig, get_peft_model

    from manytune.engine.engine import Engine
    from manytune.engine.kv_cache import row_width
    from manytune.engine.options import EngineOptions
    from manytune.engine.request import Request, SamplingParams
    from manytune.store.base import load_base
    from manytune.store.resident import read_resident
    from manytune.training.loop.train import peak_memory

    base = load_base("embedded", dtype=torch.float32)
    model: Any = get_peft_model(
        base.model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    model.save_pretrained(scratch / "adapter")
    plain = model.unload()
    options = EngineOptions(
        kv_budget_tokens=one.batch_size * row_width(one.prompt + one.completion),
        max_batch=one.batch_size,
        speculation="off",
    )
    engine = Engine(plain, base.tokenizer, options)
    for number in range(one.adapters or 0):
        engine.add_adapter(str(number), read_resident(scratch / "adapter"))
    draw = random.Random(0)

    def answer(turn: int) -> float:
        requests = [
            Request(
                f"{turn} {place}",
                tuple(draw.randrange(100, 40000) for _ in range(one.prompt)),
                SamplingParams(one.completion, ignore_eos=True),
                str(place % one.adapters) if one.adapters else None,
            )
            for place in range(one.batch_size)
        ]
        started = time.perf_counter()
        engine.generate(requests)
        return time.perf_counter() - started

    keys = {
        "prompt_tokens": one.prompt,
        "answer_tokens": one.completion,
        "adapters": one.adapters or 0,
        "zipf": 0,
        "weights": "float32",
        "kv": "float32",
        "adapter_dtype": "float32",
        "max_batch": one.batch_size,
        "devices": 1,
    }
    answer(0)  # the first is slower: memory is taken
    if what == "memory":
        memory = peak_memory()
        found = plan_of(one, "embedded", 1e11, "serving", keys).serving
        return _compared(one.name, "memory", "MiB", found.memory / 2**20, memory / 2**20)
    speed, times = Speed(plain), []
    for turn in range(1, 4):
        times.append(answer(turn))
        speed.measure()
    seconds, flops = speed.median(times)
    found = plan_of(one, "embedded", flops, "serving", keys).serving
    reached = one.batch_size * one.completion / seconds
    return _compared(one.name, "time", "tokens/s", found.tokens_per_second, reached)


def _compared(name: str, what: str, unit: str, found: Any, measured: float) -> Comparison:
    return Comparison(name, what, unit, found.low, found.expected, found.high, measured)


def show(results: list[Comparison]) -> None:
    """The comparisons, one a line."""
    print(
        f"{'configuration':<33} {'':<8} {'measured':>9} {'expected':>9} {'low':>8} {'high':>8} {'ratio':>6}"
    )
    for one in results:
        limit = WITHIN[one.what]
        verdict = "met" if 1 - limit <= one.ratio <= 1 + limit else "MISSED"
        print(
            f"{one.name:<33} {one.unit:<8} {one.measured:>9.4g} {one.expected:>9.4g} {one.low:>8.4g} {one.high:>8.4g} "
            f"{one.ratio:>6.2f} within {limit:.0%} {verdict}"
        )


def main() -> None:
    """Run each configuration in a process of its own."""
    names = [one.name for one in CONFIGURATIONS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME")
    parser.add_argument(
        "--memory-only", action="store_true", help="don't compare times: something else runs here"
    )
    parser.add_argument("--rounds", type=int, default=1, help="runs of each configuration, in turn")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "WHAT"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        name, what = chosen.one
        one = next(one for one in CONFIGURATIONS if one.name == name)
        with tempfile.TemporaryDirectory() as scratch:
            compare = train if one.adapters is None else serve
            result = compare(one, Path(scratch), what)
        print(json.dumps(asdict(result)))
        return
    from machine import LoadWatch

    watch = LoadWatch()
    found: dict[tuple[str, str], list[Comparison]] = {}
    for name in [*(chosen.only or names)] * chosen.rounds:
        for what in ("memory",) if chosen.memory_only else ("memory", "time"):
            command = [sys.executable, __file__, "--one", name, what]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            latest = Comparison(**json.loads(done.stdout.splitlines()[-1]))
            show([latest])
            found.setdefault((name, what), []).append(latest)
    print()
    results = [sorted(rounds, key=lambda one: one.ratio)[len(rounds) // 2] for rounds in found.values()]
    show(results)
    load = watch.stop()
    print(load)
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(result) for result in results], indent=2))


if __name__ == "__main__":
    main()
