"""Training throughput and memory compared with HF PEFT and transformers' Trainer, in one run.

    python benchmarks/training.py --e2e devset.csv [--rounds 3] [--steps 3] [--json FILE]

Three data sets on SmolLM2-135M-Instruct in float32, LoRA r=8 on q,v and on all linear layers, the model's
chat template:

    e2e          E2E development set, 16 examples a batch, random order
    e2e grouped  the same, examples of one meaning representation together
    aclsum       abstracts with three questions each, 9 examples a batch, a paper's questions together; without the
                 one paper of more than 512 tokens, with which a padded batch doesn't fit into 24 GB

HF PEFT runs at its best usual settings: dynamic padding and batches of similar length (`group_by_length`),
whatever the order asked for here. manytune runs shared-prefix batches in the order named, its layers compiled
(`training.compile`, whose time before the first step isn't counted; `--eager` goes without). Each works in a
process of its own, which gives its peak memory, too; they take turns, several rounds of steps each, with the
same optimizer. What is compared is real tokens (no padding, shared ones counted for each sequence) a second.

Further: the losses of both over equal batches; both processes' peak memory; and the MFU of a step: its required
FLOPs over those of matrix products alone in the same time.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import peft
import torch
import transformers
from machine import LoadWatch, gemm_gflops, peak_memory_bytes
from mfu import model_flops_utilization
from torch import nn

import manytune
from manytune.data.encoding.encode import Encoder
from manytune.data.encoding.encoded import Encoded
from manytune.data.readers import read
from manytune.data.records import Record
from manytune.data.templates import PromptTemplate
from manytune.demo.aclsum import COMPLETION, PROMPT, read_papers
from manytune.kernels.products import fast_products
from manytune.store.base import Base, load_base
from manytune.training.batches import builder, packed_attention
from manytune.training.batches.grouping import plan_batches, rows_of_one
from manytune.training.loop.rows import TrainingRows
from manytune.training.loop.train import train_model
from manytune.training.recipe import TrainingRecipe
from manytune.training.speed.chunked_cross_entropy import loss_sum

LIBRARIES = ("manytune", "peft")
TARGETS: dict[str, list[str] | str] = {"q,v": ["q_proj", "v_proj"], "all-linear": "all-linear"}
LEARNING_RATE = 2e-4


@dataclass(frozen=True)
class Scenario:
    """One data set and order, and how much faster than HF PEFT manytune must be there."""

    name: str
    batch_size: int
    grouped: bool
    required: float


SCENARIOS = (
    Scenario("e2e", 16, False, 2.2),
    Scenario("e2e grouped", 16, True, 3.5),
    Scenario("aclsum", 9, True, 3.0),
)


@dataclass(frozen=True)
class Row:
    """The figures of one scenario; speeds in real tokens a second, memory in bytes."""

    scenario: str
    targets: str
    manytune: float
    peft: float
    ratio: float
    required_ratio: float
    manytune_memory: float
    peft_memory: float
    memory_ratio: float
    mfu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--e2e", required=True, help="the E2E development set: CSV, columns mr and ref")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="steps of either in a round")
    parser.add_argument("--trajectory", type=int, default=50, help="equal batches to compare losses on")
    parser.add_argument("--only", choices=[s.name for s in SCENARIOS], help="one data set")
    parser.add_argument("--eager", action="store_true", help="manytune without torch.compile")
    parser.add_argument("--json", help="write the figures to this file, too")
    parser.add_argument("--worker", choices=LIBRARIES, help=argparse.SUPPRESS)
    parser.add_argument("--targets", choices=TARGETS, help="one set of target modules")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    transformers.logging.set_verbosity_error()
    base = load_base("embedded", dtype=torch.float32)
    chosen = [s for s in SCENARIOS if options.only in (None, s.name)]
    targets = [options.targets] if options.targets else list(TARGETS)
    if options.worker:
        _work(options.worker, chosen[0], options.targets, base, options)
        return
    print(
        f"{torch.get_num_threads()} threads, {gemm_gflops():.0f} GFLOP/s, torch {torch.__version__}, ", end=""
    )
    print(f"transformers {transformers.__version__}, peft {peft.__version__}")
    watch = LoadWatch()
    rows = []
    for scenario in chosen:
        for target in targets:
            rows.append(_compare(scenario, target, options))
            _show(rows[-1])
    trajectories = {t: _trajectory(t, base, options.e2e, options.trajectory) for t in targets}
    full = 3 * sum(
        p.numel() * p.element_size() for p in base.model.parameters()
    )  # a gradient and two moments each
    for target, (difference, held) in trajectories.items():
        print(f"{target}: losses of {options.trajectory} equal batches differ by ", end="")
        print(f"at most {difference:.1e} <= 1e-3 {_verdict(difference <= 1e-3)}")
        print(f"  optimizer state and gradients: {held / 2**20:.1f} MiB of full fine-tuning's ", end="")
        print(f"{full / 2**20:.0f}, {held / full:.3f}x <= 1/3 {_verdict(held <= full / 3)}")
    load = watch.stop()
    print(load)
    if options.json:
        result = {
            "rows": [asdict(row) for row in rows],
            "loss_differences": {t: difference for t, (difference, _) in trajectories.items()},
            "load": asdict(load),
        }
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)


def _compare(scenario: Scenario, targets: str, options: argparse.Namespace) -> Row:
    workers = {name: _Worker(name, scenario, targets, options) for name in LIBRARIES}
    spent = {name: [0.0, 0.0] for name in LIBRARIES}
    ratios = []
    for round_ in range(options.rounds):
        speeds = {}
        for name, worker in workers.items():
            tokens, seconds = worker.ask(round_)
            spent[name][0] += tokens
            spent[name][1] += seconds
            speeds[name] = tokens / seconds
        ratios.append(speeds["manytune"] / speeds["peft"])
    ours, theirs = (spent[name][0] / spent[name][1] for name in LIBRARIES)
    memory = {name: worker.ask("memory")[0] for name, worker in workers.items()}
    workers["peft"].stop()
    (share,) = workers["manytune"].ask("share")
    workers["manytune"].stop()
    return Row(
        scenario.name,
        targets,
        ours,
        theirs,
        statistics.median(ratios),
        scenario.required,
        memory["manytune"],
        memory["peft"],
        memory["manytune"] / memory["peft"],
        share,
    )


class _Worker:
    """A process that does one library's steps and nothing else, so that its peak memory is that library's."""

    def __init__(self, name: str, scenario: Scenario, targets: str, options: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--e2e", options.e2e, "--worker", name]
        command += ["--only", scenario.name, "--targets", targets, "--steps", str(options.steps)]
        command += ["--eager"] if options.eager else []
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # as long as the process
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )

    def ask(self, what: int | str) -> list[float]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        answer = next((line for line in self._process.stdout if line.startswith("[")), None)
        if answer is None:
            self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(f"a worker ended: {self._process.args}\n{self._errors.read()}")
        return list(json.loads(answer))

    def stop(self) -> None:
        self._process.communicate()


def _work(name: str, scenario: Scenario, targets: str, base: Base, options: argparse.Namespace) -> None:
    """Answer the questions that come in, a line each: a round's number, `memory` or `share`."""
    examples = examples_of(scenario, base, options.e2e)
    model = _attach(name, base.model, targets)
    for question in map(str.strip, sys.stdin):
        if question == "memory":
            answer = [float(peak_memory_bytes())]
        elif question == "share":
            plan = plan_batches(
                rows_of_one(examples),
                seed=9,
                batch_size=scenario.batch_size,
                group_prefixes=scenario.grouped,
            )
            batches = [[examples[i] for i in batch] for batch in plan[:5]]
            answer = [model_flops_utilization(model, batches, base, compiled=not options.eager)]
        elif name == "peft":
            answer = list(_run_peft(model, examples, scenario, base, options.steps, int(question)))
        else:
            answer = list(_run(model, examples, scenario, base, options, seed=int(question)))
        print(json.dumps(answer), flush=True)


def _run(
    model: nn.Module,
    examples: Sequence[Encoded],
    scenario: Scenario,
    base: Base,
    options: argparse.Namespace,
    *,
    seed: int,
) -> tuple[float, float]:
    """Take some training steps; gives the real tokens and the seconds of all but the first, which warms up."""
    settings = TrainingRecipe(
        max_steps=options.steps + 1,
        compile=not options.eager,
        batch_size=scenario.batch_size,
        learning_rate=LEARNING_RATE,
        lr_scheduler="constant",
        warmup=0,
        batching="shared-prefix",
        group_prefixes=scenario.grouped,
        seed=seed,
        device="cpu",
    )
    reports: list[Any] = []
    rows = TrainingRows(train=examples, pad_id=base.tokenizer.pad_token_id)
    train_model(model, rows, settings, report=reports.append)
    first, last = reports[0], reports[-1]
    return last.tokens - first.tokens, last.step_seconds - first.step_seconds


def _run_peft(
    model: nn.Module, examples: Sequence[Encoded], scenario: Scenario, base: Base, steps: int, seed: int
) -> tuple[float, float]:
    clock = _Clock()
    pad = transformers.DataCollatorForSeq2Seq(base.tokenizer, label_pad_token_id=-100)

    def collate(rows: list[dict[str, Any]]) -> Any:
        batch = pad(rows)
        clock.tokens_of_batch = int(batch["attention_mask"].sum()) - len(rows)  # the last token is no input
        return batch

    rows = [
        {
            "input_ids": list(e.input_ids),
            "attention_mask": [1] * len(e.input_ids),
            "labels": [-100] * len(e.prompt_ids) + list(e.completion_ids),
        }
        for e in examples
    ]
    with tempfile.TemporaryDirectory() as scratch:
        transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(
                output_dir=scratch,
                per_device_train_batch_size=scenario.batch_size,
                max_steps=steps + 1,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                train_sampling_strategy="group_by_length",
                seed=seed,
                use_cpu=True,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                logging_strategy="no",
            ),
            train_dataset=rows,  # type: ignore[arg-type]
            data_collator=collate,
            callbacks=[clock],
        ).train()
    return clock.tokens, clock.seconds


class _Clock(transformers.TrainerCallback):
    """Real tokens and seconds of all steps but the first."""

    def __init__(self) -> None:
        self.tokens = self.seconds = 0.0
        self.tokens_of_batch = 0
        self._started = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tokens_of_step = self.tokens_of_batch
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step > 1:
            self.tokens += self._tokens_of_step
            self.seconds += time.perf_counter() - self._started


def _trajectory(targets: str, base: Base, e2e: str, steps: int) -> tuple[float, int]:
    """Largest difference of the two losses over equal batches, both libraries training from the same start.

    And the bytes that manytune's optimizer state and gradients take.
    """
    examples = examples_of(SCENARIOS[0], base, e2e)
    models = {name: _attach(name, copy.deepcopy(base.model), targets) for name in LIBRARIES}
    ours, theirs = models["manytune"].train(), models["peft"].train()
    optimizers = [
        torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=LEARNING_RATE)
        for m in (ours, theirs)
    ]
    build, padded = builder("shared-prefix"), transformers.DataCollatorForSeq2Seq(base.tokenizer)
    largest, held = 0.0, 0
    for plan in plan_batches(rows_of_one(examples), seed=5, batch_size=2)[:steps]:
        rows = [examples[i] for i in plan]
        with packed_attention(ours), fast_products(ours):
            batch = build(rows, pad_id=base.tokenizer.pad_token_id)
            loss = loss_sum(ours, batch) / batch.targets
            loss.backward()
        inputs = padded(
            [
                {
                    "input_ids": list(e.input_ids),
                    "attention_mask": [1] * len(e.input_ids),
                    "labels": [-100] * len(e.prompt_ids) + list(e.completion_ids),
                }
                for e in rows
            ]
        )
        other = theirs(**inputs).loss
        other.backward()
        largest = max(largest, abs(float(loss.detach()) - float(other.detach())))
        gradients = [p.grad for p in ours.parameters() if p.grad is not None]
        for optimizer in optimizers:
            optimizer.step()
        moments = [t for state in optimizers[0].state.values() for t in state.values()]
        held = sum(t.numel() * t.element_size() for t in (*gradients, *moments))
        for optimizer in optimizers:
            optimizer.zero_grad()
    return largest, held


def _attach(name: str, model: nn.Module, targets: str) -> Any:
    library: Any = manytune if name == "manytune" else peft
    torch.manual_seed(1)
    config = library.LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS[targets], task_type="CAUSAL_LM")
    return library.get_peft_model(model, config)


def examples_of(scenario: Scenario, base: Base, e2e: str) -> tuple[Encoded, ...]:
    encoder = Encoder(base.tokenizer, max_length=512, overflow="drop")
    if scenario.name == "aclsum":
        template = PromptTemplate(PROMPT, COMPLETION)
        rows = [row for paper in read_papers("train") for row in paper.rows()]
        records = tuple(Record(row, "aclsum", i) for i, row in enumerate(rows, 1))
    else:
        template = PromptTemplate("Describe this restaurant in one sentence: {{ mr }}", "{{ ref }}")
        records = read(e2e).kept
    return encoder.encode_all([template.render(record) for record in records]).kept


def _verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def _show(row: Row) -> None:
    print(f"{row.scenario}, {row.targets}: {row.manytune:.0f} against {row.peft:.0f} real tokens/s")
    fast = _verdict(row.ratio >= row.required_ratio)
    print(f"  faster by        {row.ratio:.2f}x >= {row.required_ratio} {fast}")
    print(
        f"  peak memory      {row.manytune_memory / 2**20:.0f} against {row.peft_memory / 2**20:.0f} MiB, "
        f"{row.memory_ratio:.2f}x <= 0.6 {_verdict(row.memory_ratio <= 0.6)}"
    )
    print(
        f"  MFU              {row.mfu:.0%} >= 75% {_verdict(row.mfu >= 0.75)}",
        flush=True,
    )


if __name__ == "__main__":
    main()
