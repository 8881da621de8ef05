"""Every method on the same task for the same number of steps, as a table in docs/methods.md.

    python benchmarks/methods_table.py [--only NAME ...] [--records DIRECTORY]

SmolLM2-135M-Instruct learns to answer three questions on abstracts of papers (ACLSum): a few steps, each on one paper
with its three questions. Each method trains in a process of its own and leaves a record; those that have one aren't run
again, so the table may be made in pieces. It shows what a step of each method costs, and that each learns. It doesn't
rank them: so short a training and so few answers can't.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
BEGIN, END = "<!-- begin: benchmarks/methods_table.py -->", "<!-- end -->"
STEPS, QUESTIONS, VALIDATION_PAPERS, TEST_PAPERS = 8, 3, 2, 4
LONGEST_ANSWER = 48


@dataclass(frozen=True)
class Entry:
    """A method as the table runs it.

    Attributes:
        name: What the table calls it.
        learning_rate: A usual one for the method.
        options: The recipe's `method`; None leaves the base as it is.
    """

    name: str
    learning_rate: float
    options: dict[str, Any] | None


@dataclass(frozen=True)
class Record:
    """What one run gave. Seconds a step are the median; memory is the process's peak, in bytes."""

    name: str
    learning_rate: float
    steps: int
    layout: str | None
    trainable: int
    total: int
    step_seconds: float | None
    peak_memory: int | None
    validation_loss: float
    rouge: dict[str, float]
    rouge1_interval: tuple[float, float]
    gflops: float
    others: float
    settings: dict[str, int] = field(default_factory=dict)


def _lora(**options: Any) -> dict[str, Any]:
    return {"name": "lora", "r": 8, "lora_alpha": 16, "target_modules": "all-linear", **options}


def _combined() -> dict[str, Any]:
    return {
        "name": "combined",
        "weights": _lora(),
        "prompt": {"name": "prefix-tuning", "num_virtual_tokens": 20, "prefix_projection": True},
    }


_ADALORA = {"name": "adalora", "target_modules": "all-linear", "init_r": 12, "target_r": 8, "lora_alpha": 24}
_TOKENS = {"num_virtual_tokens": 20}

ENTRIES = (
    Entry("base, untrained", 0.0, None),
    Entry("full fine-tuning", 1e-4, {"name": "full"}),
    Entry("LoRA", 1e-3, _lora()),
    Entry("rsLoRA", 5e-4, _lora(use_rslora=True)),
    Entry("DoRA", 1e-3, _lora(use_dora=True)),
    Entry("PiSSA", 5e-4, _lora(init_lora_weights="pissa_niter_4", lora_alpha=8)),
    Entry("OLoRA", 5e-4, _lora(init_lora_weights="olora", lora_alpha=8)),
    Entry("LoRA-FA", 2e-3, _lora(freeze_a=True)),
    Entry("AdaLoRA", 2e-3, {**_ADALORA, "tinit": 2, "tfinal": 2}),
    Entry("VeRA", 1e-2, {"name": "vera", "r": 256, "target_modules": "all-linear"}),
    Entry("IA3", 1e-2, {"name": "ia3"}),
    Entry("prompt tuning", 3e-2, {"name": "prompt-tuning", **_TOKENS}),
    Entry("P-tuning", 1e-3, {"name": "p-tuning", "encoder_hidden_size": 256, **_TOKENS}),
    Entry("prefix tuning", 1e-2, {"name": "prefix-tuning", **_TOKENS}),
    Entry("prefix tuning, projection", 1e-3, {"name": "prefix-tuning", "prefix_projection": True, **_TOKENS}),
    Entry("bottleneck, Houlsby", 1e-3, {"name": "bottleneck", "style": "houlsby"}),
    Entry("bottleneck, Pfeiffer", 1e-3, {"name": "bottleneck", "style": "pfeiffer"}),
    Entry("bottleneck, parallel", 1e-3, {"name": "bottleneck", "style": "parallel", "scaling": 4.0}),
    Entry("selective, norms", 3e-3, {"name": "selective", "parameters": "layernorm"}),
    Entry("selective, attention", 1e-4, {"name": "selective", "parameters": ["self_attn"]}),
    Entry("LoRA + prefix tuning", 1e-3, _combined()),
)


def measure(entry: Entry, steps: int) -> Record:
    """Train and ask, in this process."""
    from machine import LoadWatch, gemm_gflops

    from manytune.data.encoding.encode import Encoder
    from manytune.demo.story import read_questions, write_data
    from manytune.engine.static_batch import generate_batch
    from manytune.evaluation.answers import ask
    from manytune.evaluation.metrics import metrics_named
    from manytune.evaluation.significance import bootstrap_interval, cluster_sums
    from manytune.model.peft_model import PeftModel
    from manytune.store.base import load_base

    gflops = gemm_gflops()
    watch = LoadWatch()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        write_data(directory)
        cost = {} if entry.options is None else _train(entry, directory, steps)
        base = load_base("embedded")
        model: Any = base.model
        if entry.options is None:
            cost = _untrained(entry, directory, base)
        else:
            model = PeftModel.from_pretrained(base.model, directory / "run" / "adapter", strict=True)
        questions = read_questions(directory)[: TEST_PAPERS * QUESTIONS]
        ends = [Encoder(base.tokenizer, max_length=None).end_id]
        answers = ask(
            questions,
            lambda prompts: generate_batch(
                model, base.tokenizer, prompts, max_new_tokens=LONGEST_ANSWER, batch_size=6, end_ids=ends
            ),
        )
    scores, interval = {}, (0.0, 0.0)
    for metric in metrics_named(["rouge1", "rougeL"]):
        counts = metric.statistics(answers, [question.item.references for question in questions])
        scores[metric.name] = float(metric.aggregate(counts.sum(0)))
        if metric.name == "rouge1":
            papers = cluster_sums(counts, [question.item.group for question in questions])
            found = bootstrap_interval(metric.aggregate, papers, bounds=metric.bounds)
            assert found is not None
            interval = (found.low, found.high)
    return Record(
        name=entry.name,
        learning_rate=entry.learning_rate,
        rouge=scores,
        rouge1_interval=interval,
        gflops=gflops,
        others=watch.stop().others,
        settings={"questions": QUESTIONS, "validation": VALIDATION_PAPERS, "test": TEST_PAPERS},
        **cost,
    )


def _recipe(entry: Entry, directory: Path, steps: int) -> Any:
    from manytune.demo.aclsum import COMPLETION, GROUP_BY, PROMPT, read_papers, write_rows
    from manytune.demo.recipes import MAX_LENGTH
    from manytune.training.recipe import recipe_from

    data = directory / "data"
    write_rows(data / "validation.jsonl", read_papers("validation")[:VALIDATION_PAPERS])
    return recipe_from(
        {
            "base": "embedded",
            "data": {
                "train": str(data / "train.jsonl"),
                "validation": str(data / "validation.jsonl"),
                "prompt": PROMPT,
                "completion": COMPLETION,
                "group_by": GROUP_BY,
                "max_length": MAX_LENGTH,
                "overflow": "drop",
            },
            "method": entry.options or {"name": "lora"},
            "training": {
                "max_steps": steps,
                "batch_size": QUESTIONS,
                "learning_rate": entry.learning_rate or 1e-3,
                "group_prefixes": True,
                "warmup": 0,
                "eval_every": steps,
                "checkpoint_every": None,
            },
            "output": str(directory / "run"),
        }
    )


def _train(entry: Entry, directory: Path, steps: int) -> dict[str, Any]:
    """Train as `manytune train` does."""
    from manytune.training.run import run

    training = run(_recipe(entry, directory, steps), measure_flops=False).training
    done = [0.0, *(report.step_seconds for report in training.step_reports)]
    return {
        "steps": training.steps,
        "layout": training.layout.used,
        "trainable": training.trainable_parameters,
        "total": training.all_parameters,
        "step_seconds": statistics.median(after - before for before, after in itertools.pairwise(done)),
        "peak_memory": training.peak_memory,
        "validation_loss": training.validation_loss,
    }


def _untrained(entry: Entry, directory: Path, base: Any) -> dict[str, Any]:
    from manytune.data.dataset import encode_splits, read_splits
    from manytune.model.accounting import count_parameters
    from manytune.training.batches import builder
    from manytune.training.loop.loss import mean_loss

    data = _recipe(entry, directory, 1).data
    rows = encode_splits(read_splits(data), data, base.tokenizer).validation
    return {
        "steps": 0,
        "layout": None,
        "trainable": 0,
        "total": count_parameters(base.model)[1],
        "step_seconds": None,
        "peak_memory": None,
        "validation_loss": mean_loss(base.model, rows, builder("padded"), batch_size=QUESTIONS, pad_id=0),
    }


def table(records: list[Record]) -> str:
    """The table in Markdown, with a line on what the figures rest on."""
    lines = [
        "| method | learning rate | trained parameters | seconds a step | peak memory | validation loss | ROUGE-1 (95% "
        "interval) | ROUGE-L |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        low, high = record.rouge1_interval
        padded = " ¹" if record.layout == "padded" else ""
        trained = f"{record.trainable:,} ({record.trainable / record.total:.2%})" if record.steps else "—"
        cells = [
            record.name,
            f"{record.learning_rate:g}" if record.steps else "—",
            trained,
            "—" if record.step_seconds is None else f"{record.step_seconds:.2f}{padded}",
            "—" if record.peak_memory is None else f"{record.peak_memory / 2**30:.2f} GiB",
            f"{record.validation_loss:.3f}",
            f"{record.rouge['rouge1']:.3f} ({low:.2f}–{high:.2f})",
            f"{record.rouge['rougeL']:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    speeds, busy = [record.gflops for record in records], max(record.others for record in records)
    steps = max(record.steps for record in records)
    lines += [
        "",
        f"{steps} steps of {QUESTIONS} prompts (one paper each, {steps} papers); validation on "
        f"{VALIDATION_PAPERS * QUESTIONS} and ROUGE on {TEST_PAPERS * QUESTIONS} prompts of {TEST_PAPERS} papers each, "
        f"answers of at most {LONGEST_ANSWER} tokens. CPU, float32 matrix products at {min(speeds):.0f} to "
        f"{max(speeds):.0f} GFLOP/s; other processes used at most {busy:.2f} cores on average.",
        "",
        "¹ with padded batches, where the paper is read for each prompt; the others share it between three prompts.",
    ]
    return "\n".join(lines)


def write_page(text: str, page: Path = PAGE) -> None:
    """Put the table between the page's markers."""
    content = page.read_text(encoding="utf-8")
    before, _, rest = content.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Run what has no record yet, and write the table of those that have one."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = [entry.name for entry in ENTRIES]
    options.add_argument("--only", nargs="+", choices=names, metavar="NAME", help="run no others now")
    options.add_argument("--records", type=Path, default=Path("runs/methods-table"))
    options.add_argument("--steps", type=int, default=STEPS)
    options.add_argument("--one", choices=names, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    chosen.records.mkdir(parents=True, exist_ok=True)
    paths = {name: chosen.records / f"{name.replace(',', '').replace(' ', '-')}.json" for name in names}
    if chosen.one:
        record = measure(next(entry for entry in ENTRIES if entry.name == chosen.one), chosen.steps)
        paths[chosen.one].write_text(json.dumps(asdict(record), indent=2))
        return
    for name in chosen.only or names:
        if not paths[name].exists():
            arguments = ["--one", name, "--records", str(chosen.records), "--steps", str(chosen.steps)]
            subprocess.run([sys.executable, __file__, *arguments], check=True)
            print(paths[name].read_text(), flush=True)
    records = [Record(**json.loads(path.read_text())) for path in paths.values() if path.exists()]
    missing = [name for name in names if not paths[name].exists()]
    text = table(records) + (f"\n\nNot run yet: {'; '.join(missing)}." if missing else "")
    write_page(text)
    print(text)


if __name__ == "__main__":
    main()
