"""Adapters as HF PEFT, Trainer and TRL leave them: written by the installed `peft` and `transformers`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from tests.store.tiny import tiny_model


@contextmanager
def _with_their_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def peft_model(seed: int = 0, **options: Any) -> Any:
    """The tiny base with an adapter of HF PEFT, its values random."""
    config = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **options}
    with _with_their_warnings():
        model = peft.get_peft_model(tiny_model(), peft.LoraConfig(**config))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape))
    return model


def save_peft(directory: Path, seed: int = 0, **options: Any) -> Path:
    """What `save_pretrained` of HF PEFT writes."""
    peft_model(seed, **options).save_pretrained(str(directory))
    return directory


def train_with_trainer(directory: Path, tokenizer: Any) -> Path:
    """What a Trainer with a checkpoint leaves: the adapter, its tokenizer, arguments, and `checkpoint-1` with more."""
    arguments = transformers.TrainingArguments(
        output_dir=str(directory), max_steps=1, save_steps=1, report_to=[], use_cpu=True, disable_tqdm=True
    )
    rows = [{"input_ids": [3, 4, 5], "labels": [3, 4, 5], "attention_mask": [1, 1, 1]}]
    with _with_their_warnings():
        trainer = transformers.Trainer(
            model=peft_model(), args=arguments, train_dataset=rows, processing_class=tokenizer
        )
        trainer.train()
        trainer.save_model()
    return directory
