"""Rows, a model and a recipe that train in well under a second."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tests.store.tiny import LETTERS, save_tiny_base, tiny_model
from torch import nn

from manytune.data.encoding.encoded import Encoded
from manytune.data.mixing import Mixture
from manytune.methods.registry import peft_config_from
from manytune.model.attach import get_peft_model
from manytune.training.loop.rows import TrainingRows
from manytune.training.recipe import TrainingRecipe

VOCABULARY = range(3, 3 + len(LETTERS))


def sequences(count: int, seed: int = 0) -> list[Encoded]:
    """Random letters; prompts of 3 to 9 and completions of 3 to 6 tokens."""
    draw = random.Random(seed)

    def letters(shortest: int, longest: int) -> tuple[int, ...]:
        return tuple(draw.choice(VOCABULARY) for _ in range(draw.randint(shortest, longest)))

    return [Encoded(letters(3, 9), (*letters(2, 5), 0), "rows.jsonl", row) for row in range(1, count + 1)]


def lora(*, dropout: float = 0.0, r: int = 2, name: str = "lora", layers: int = 2) -> nn.Module:
    """The tiny model, or some of its layers, with an adapter, the same one every time."""
    model = tiny_model()
    del model.model.layers[layers:]
    model.config.num_hidden_layers = layers
    torch.manual_seed(0)
    options: dict[str, Any] = (
        {} if name == "full" else {"r": r, "lora_dropout": dropout, "target_modules": "all-linear"}
    )
    return get_peft_model(model, peft_config_from(name, task_type="CAUSAL_LM", **options))


def as_rows(
    train: Sequence[Encoded], validation: Sequence[Encoded] = (), *, mixture: Mixture | None = None
) -> TrainingRows:
    """Sequences as the training loop takes them."""
    return TrainingRows(train=train, validation=validation, mixture=mixture, pad_id=0)


def settings(**changes: Any) -> TrainingRecipe:
    """Two epochs of three rows a batch, without checkpoints, but for the changes."""
    usual: dict[str, Any] = {"epochs": 2.0, "batch_size": 3, "learning_rate": 0.01, "checkpoint_every": None}
    return TrainingRecipe(**{**usual, **changes})


def weights_digest(model: nn.Module) -> str:
    """The SHA-256 over every trainable parameter's bits."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            digest.update(name.encode())
            digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def adapter_digest(adapter: Path) -> str:
    """The SHA-256 over a stored adapter's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(adapter / "adapter_model.safetensors").items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def write_rows(path: Path, count: int, seed: int = 0) -> Path:
    """A JSONL file with the fields `text` and `answer`."""
    draw = random.Random(seed)

    def word() -> str:
        return "".join(draw.choice(LETTERS) for _ in range(draw.randint(3, 8)))

    lines = [json.dumps({"text": f"{word()} {word()}", "answer": word()}) for _ in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def recipe_content(directory: Path, **training: Any) -> dict[str, Any]:
    """A recipe over a tiny base and 24 rows, in a directory of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    return {
        "base": str(save_tiny_base(directory / "base")),
        "data": {
            "train": str(write_rows(directory / "rows.jsonl", 24)),
            "validation": 0.25,
            "prompt": "{{ text }}",
            "completion": "{{ answer }}",
        },
        "method": {"name": "lora", "r": 2, "lora_dropout": 0.1, "target_modules": "all-linear"},
        "training": {"epochs": 2, "batch_size": 3, "learning_rate": 0.01, "checkpoint_every": 2, **training},
        "output": str(directory / "run"),
    }
