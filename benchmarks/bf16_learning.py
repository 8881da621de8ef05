"""How much is learned on a bfloat16 base: hidden states in float32, in bfloat16 (HF PEFT's way), and all in float32.

    python benchmarks/bf16_learning.py --e2e devset.csv [--steps 10] [--full-steps 20] [--json FILE]

SmolLM2-135M-Instruct on rows of the E2E development set, 16 a step; LoRA r=8 on all linear layers at 2e-4, the same
batches and the same first weights for each. The validation loss of 32 other rows is measured as the adapter was trained
and, to see what serving costs, with hidden states in the base's own bfloat16. The share of the improvement is that of
float32's. Then full fine-tuning at 2e-5 (`--full-steps`, 0 for none): how many weights move, with and without float32
masters.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import peft
import torch
import transformers
from machine import LoadWatch
from torch import nn

import manytune
from manytune.data.encoding.encode import Encoder
from manytune.data.encoding.encoded import Encoded
from manytune.data.readers import read
from manytune.data.templates import PromptTemplate
from manytune.store.base import Base, load_base
from manytune.training.batches import builder
from manytune.training.loop.loss import mean_loss
from manytune.training.loop.rows import TrainingRows
from manytune.training.loop.train import train_model
from manytune.training.recipe import TrainingRecipe
from manytune.training.speed.layout_choice import LayoutChoice, prepared

BATCH, VALIDATION = 16, 32
LAYOUT = LayoutChoice("shared-prefix", "shared-prefix", None)
Activations = Literal["float32", "base"]


@dataclass(frozen=True)
class Row:
    """One way of training; losses in nats per target token."""

    name: str
    before: float
    after: float
    served: float
    seconds_a_step: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--e2e", required=True, help="the E2E development set: CSV, columns mr and ref")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--full-steps", type=int, default=20)
    parser.add_argument("--json", help="write the figures to this file, too")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    transformers.logging.set_verbosity_error()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, peft {peft.__version__}")
    watch = LoadWatch()
    print(f"{'':30}  {'before':>7} {'after':>7} {'share':>6}  {'served':>7}  {'s/step':>6}")
    rows: list[Row] = []
    for name, (dtype, activations, attach) in WAYS.items():
        row = _lora(name, dtype, activations, attach, options)
        rows.append(row)
        share = (row.before - row.after) / (rows[0].before - rows[0].after)
        print(f"{name:30}  {row.before:7.3f} {row.after:7.3f} {share:6.1%}  {row.served:7.3f}", end="")
        print(f"  {row.seconds_a_step:6.1f}", flush=True)
    moved: dict[str, tuple[float, float]] = {}
    if options.full_steps:
        for name in ("float32", "bfloat16", "bfloat16, no masters"):
            moved[name] = share, loss = _full(name, options)
            print(f"full fine-tuning, {name}: {share:.0%} of the weights moved, validation loss {loss:.3f}")
    load = watch.stop()
    print(load)
    if options.json:
        found = {"lora": [asdict(row) for row in rows], "full": moved, "load": str(load)}
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)


def _lora(
    name: str,
    dtype: torch.dtype,
    activations: Activations,
    attach: Callable[[nn.Module], nn.Module],
    options: argparse.Namespace,
) -> Row:
    base = load_base("embedded", dtype=dtype)
    rows = rows_of(base, options.e2e, options.steps)
    torch.manual_seed(0)
    model = attach(base.model)
    settings = TrainingRecipe(
        max_steps=options.steps,
        batch_size=BATCH,
        learning_rate=2e-4,
        batching=LAYOUT.used,
        activations=activations,
        dtype="bfloat16" if dtype == torch.bfloat16 else "float32",
        checkpoint_every=None,
    )
    found = train_model(model, rows, settings, measure_flops=False)
    assert found.validation_loss is not None
    with prepared(model, LAYOUT):
        build = builder(LAYOUT.used)
        served = mean_loss(model, rows.validation, build, batch_size=BATCH, pad_id=rows.pad_id)
    before = found.validation_reports[0].validation_loss
    return Row(name, before, found.validation_loss, served, found.step_seconds / options.steps)


def _full(name: str, options: argparse.Namespace) -> tuple[float, float]:
    """The share of the weights that differ after a short full fine-tuning, and the validation loss."""
    half = name != "float32"
    base = load_base("embedded", dtype=torch.bfloat16 if half else torch.float32)
    rows = rows_of(base, options.e2e, options.full_steps)
    before = {name: weight.detach().clone() for name, weight in base.model.named_parameters()}
    model = manytune.get_peft_model(base.model, manytune.FullConfig(task_type="CAUSAL_LM", keep_base=False))
    masters = name == "bfloat16"
    if masters:
        model.tuner.hold_float32()
    settings = TrainingRecipe(
        max_steps=options.full_steps,
        batch_size=BATCH,
        learning_rate=2e-5,
        batching=LAYOUT.used,
        activations="base" if half and not masters else "float32",
        dtype="bfloat16" if half else "float32",
        checkpoint_every=None,
    )
    found = train_model(model, rows, settings, measure_flops=False)
    assert found.validation_loss is not None
    after = dict(base.model.named_parameters())
    changed = sum(int((after[name].detach() != weight).sum()) for name, weight in before.items())
    return changed / sum(weight.numel() for weight in before.values()), found.validation_loss


def _ours(model: Any) -> nn.Module:
    return manytune.get_peft_model(model, manytune.LoraConfig(**_OPTIONS))


def _peft(model: Any) -> nn.Module:
    return peft.get_peft_model(model, peft.LoraConfig(**_OPTIONS))


_OPTIONS: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 16,
    "target_modules": "all-linear",
    "task_type": "CAUSAL_LM",
}


def rows_of(base: Base, e2e: str, steps: int) -> TrainingRows:
    """The first rows of the file: the validation rows, and then one for each place in a batch."""
    encoder = Encoder(base.tokenizer, max_length=512, overflow="drop")
    template = PromptTemplate("Describe this restaurant in one sentence: {{ mr }}", "{{ ref }}")
    records = read(e2e).kept
    spread = records[:: len(records) // (VALIDATION + steps * BATCH)][: VALIDATION + steps * BATCH]
    encoded: tuple[Encoded, ...] = encoder.encode_all([template.render(record) for record in spread]).kept
    train, validation = encoded[VALIDATION:], encoded[:VALIDATION]
    pad_id = base.tokenizer.pad_token_id
    return TrainingRows(train=train, validation=validation, mixture=None, pad_id=int(pad_id or 0))


WAYS: dict[str, tuple[torch.dtype, Activations, Callable[[Any], nn.Module]]] = {
    "float32": (torch.float32, "float32", _ours),
    "bfloat16": (torch.bfloat16, "float32", _ours),
    "bfloat16, activations: base": (torch.bfloat16, "base", _ours),
    "bfloat16, HF PEFT": (torch.bfloat16, "base", _peft),
}


if __name__ == "__main__":
    main()
