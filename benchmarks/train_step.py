"""One training step and one attachment, compared with HF PEFT's, in one run.

    python benchmarks/train_step.py [--rounds 5] [--batch-size 8] [--json FILE]

Both libraries train the same adapter on the same base (SmolLM2-135M-Instruct, float32), batches, order and
optimizer; each round takes one step with either, in turn, so that a change of the machine's speed hits both
alike. Shown are medians, the ratio ours / peft, and the largest difference between the two losses of one step.

Peak memory is taken from processes of their own that do nothing but these steps.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import peft
import torch
from machine import Load, LoadWatch, gemm_gflops, peak_memory_bytes
from torch import Tensor, nn

import manytune
from manytune.demo.aclsum import read_papers
from manytune.store.base import Base, load_base

TARGETS: dict[str, list[str] | str] = {"q,v": ["q_proj", "v_proj"], "all-linear": "all-linear"}
LIBRARIES: dict[str, Any] = {"manytune": manytune, "peft": peft}
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Row:
    """One comparison; times in milliseconds, memory in bytes."""

    targets: str
    what: str
    manytune: float
    peft: float
    ratio: float
    required: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="steps of each library that count")
    parser.add_argument("--attachments", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=8, help="a recipe's default is 8")
    parser.add_argument("--only", choices=("attach", "step", "memory"), help="one of the three questions")
    parser.add_argument("--json", help="write the figures to this file, too")
    parser.add_argument("--memory-of", choices=LIBRARIES, help=argparse.SUPPRESS)
    parser.add_argument("--targets", choices=TARGETS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    torch.manual_seed(0)
    base = load_base("embedded", dtype=torch.float32)
    if options.memory_of:
        print(_memory(base, options.memory_of, options.targets, options.batch_size))
        return
    print(
        f"{torch.get_num_threads()} threads, {gemm_gflops():.0f} GFLOP/s, torch {torch.__version__}, ", end=""
    )
    print(f"peft {peft.__version__}, batch of {options.batch_size}")
    watch = LoadWatch()
    rows: list[Row] = []
    differences = {}
    # Attachments first: a process that has taken steps already is slower at everything.
    if options.only in (None, "attach"):
        rows += [_attachments(base, targets, options.attachments) for targets in TARGETS]
    for targets in TARGETS:
        if options.only in (None, "step"):
            step, differences[targets] = _steps(base, targets, options.rounds, options.batch_size)
            rows.append(step)
        if options.only in (None, "memory"):
            rows.append(_memories(targets, options.batch_size))
    load = watch.stop()
    _show(rows, differences, load)
    if options.json:
        result = {
            "rows": [asdict(row) for row in rows],
            "loss_differences": differences,
            "load": asdict(load),
        }
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)


def _steps(base: Base, targets: str, rounds: int, batch_size: int) -> tuple[Row, float]:
    steppers = {name: _stepper(copy.deepcopy(base.model), name, targets) for name in LIBRARIES}
    times: dict[str, list[float]] = {name: [] for name in LIBRARIES}
    largest = 0.0
    for index, batch in zip(range(rounds + 2), _batches(base, batch_size), strict=False):
        losses = {}
        # Whoever goes first finds colder caches; take turns.
        for name in list(steppers)[:: 1 if index % 2 else -1]:
            start = time.perf_counter()
            losses[name] = steppers[name](batch)
            if index >= 2:  # the first steps set up the optimizer and the allocator
                times[name].append((time.perf_counter() - start) * 1e3)
        largest = max(largest, abs(losses["manytune"] - losses["peft"]))
    ours, theirs = (statistics.median(times[name]) for name in LIBRARIES)
    ratio = statistics.median(a / b for a, b in zip(times["manytune"], times["peft"], strict=True))
    return Row(targets, "step, ms", ours, theirs, ratio, 0.97 if targets == "q,v" else 0.93), largest


def _attachments(base: Base, targets: str, rounds: int) -> Row:
    times: dict[str, list[float]] = {name: [] for name in LIBRARIES}
    for _ in range(rounds + 1):
        for name, library in LIBRARIES.items():
            model = copy.deepcopy(base.model)
            gc.collect()
            config = library.LoraConfig(r=8, target_modules=TARGETS[targets], task_type="CAUSAL_LM")
            start = time.perf_counter()
            library.get_peft_model(model, config)
            times[name].append((time.perf_counter() - start) * 1e3)
    ours, theirs = (statistics.median(times[name][1:]) for name in LIBRARIES)
    return Row(targets, "attach, ms", ours, theirs, ours / theirs, 0.25)


def _memories(targets: str, batch_size: int) -> Row:
    def measure(name: str) -> float:
        command = [sys.executable, __file__, "--memory-of", name, "--targets", targets]
        done = subprocess.run(
            [*command, "--batch-size", str(batch_size)], check=True, capture_output=True, text=True
        )
        return float(done.stdout.split()[-1])

    ours, theirs = measure("manytune"), measure("peft")
    return Row(targets, "peak memory, MiB", ours / 2**20, theirs / 2**20, ours / theirs, 1.0)


def _memory(base: Base, name: str, targets: str, batch_size: int) -> int:
    step = _stepper(base.model, name, targets)
    for _, batch in zip(range(3), _batches(base, batch_size), strict=False):
        step(batch)
    return peak_memory_bytes()


def _stepper(model: nn.Module, name: str, targets: str) -> Callable[[dict[str, Tensor]], float]:
    """A function that takes one training step and gives the loss before it."""
    library = LIBRARIES[name]
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = library.LoraConfig(
            r=8, lora_alpha=16, target_modules=TARGETS[targets], task_type="CAUSAL_LM"
        )
        model = library.get_peft_model(model, config)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)

    def step(batch: dict[str, Tensor]) -> float:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def _batches(base: Base, size: int) -> Iterator[dict[str, Tensor]]:
    """Padded batches of abstracts with one question and its answer each; the loss is on the answer."""
    tokenizer = base.tokenizer
    papers = read_papers("train")
    end = tokenizer.eos_token_id
    while True:
        for first in range(0, len(papers) - size, size):
            chosen = papers[first : first + size]
            prompts = [tokenizer(paper.abstract).input_ids for paper in chosen]
            answers = [[*tokenizer(paper.answers["challenge"]).input_ids, end] for paper in chosen]
            longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
            ids = torch.full((size, longest), end)
            mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
            for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
                ids[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
                mask[row, : len(prompt) + len(answer)] = 1
                labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
            yield {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _show(rows: list[Row], differences: dict[str, float], load: Load) -> None:
    print(f"{'targets':<11} {'what':<17} {'manytune':>9} {'peft':>9} {'ratio':>6} {'required':>9}")
    for row in rows:
        verdict = "met" if row.ratio <= row.required else "MISSED"
        print(
            f"{row.targets:<11} {row.what:<17} {row.manytune:>9.1f} {row.peft:>9.1f} {row.ratio:>6.3f} "
            f"<= {row.required:<5} {verdict}"
        )
    for targets, difference in differences.items():
        verdict = "met" if difference <= 1e-4 else "MISSED"
        print(
            f"{targets:<11} largest difference of the losses of one step: {difference:.1e} <= 1e-4 {verdict}"
        )
    print(load)


if __name__ == "__main__":
    main()
