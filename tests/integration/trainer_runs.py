"""A tiny language model with an adapter, trained by transformers' Trainer, whichever library the adapter is of.

As a program it trains one where `peft` isn't installed: `python -m tests.integration.trainer_runs DIRECTORY`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, default_data_collator

import manytune

STEPS = 6


def base(*, tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            initializer_range=0.3,
            tie_word_embeddings=tied,
        )
    )


def rows() -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 30, (64, 6), generator=generator).tolist()
    return [{"input_ids": ids, "labels": ids} for ids in tokens]


def lora(library: Any) -> Any:
    return library.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])


def trainer_of(model: nn.Module, directory: Path, kind: type[Trainer] = Trainer, **options: Any) -> Trainer:
    """The higher loss counts as the better one, so that the best model is never the last."""
    arguments = TrainingArguments(
        str(directory),
        max_steps=STEPS,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        save_strategy="steps",
        save_steps=3,
        eval_strategy="steps",
        eval_steps=3,
        logging_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    return kind(
        model,
        arguments,
        train_dataset=rows(),
        eval_dataset=rows()[:16],
        data_collator=default_data_collator,
    )


def losses(trainer: Trainer) -> list[float]:
    return [x.get("loss", x.get("eval_loss")) for x in trainer.state.log_history if "train_loss" not in x]


def adapted(library: Any, *, tied: bool = True) -> Any:
    model = base(tied=tied)
    torch.manual_seed(7)
    return library.get_peft_model(model, lora(library))


def trained(
    library: Any, directory: Path, *, tied: bool, resume: bool = False, kind: type[Trainer] = Trainer
) -> Trainer:
    trainer = trainer_of(adapted(library, tied=tied), directory, kind)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class AdapterTrainer(manytune.AdapterCheckpoints, Trainer):
    """What `AdapterCheckpoints` says to write."""


if __name__ == "__main__":
    sys.modules["peft"] = None  # type: ignore[assignment]  # for importlib, as if it weren't installed
    where = Path(sys.argv[1])
    whole = trained(manytune, where, tied=True, kind=AdapterTrainer)
    (where / f"checkpoint-{STEPS}").rename(where / "last")
    resumed = trained(manytune, where, tied=True, resume=True, kind=AdapterTrainer)
    for trainer in (whole, resumed):
        print(*losses(trainer), trainer.evaluate()["eval_loss"])
