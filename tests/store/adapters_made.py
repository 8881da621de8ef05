"""Adapters on disk, without a training run: random tensors of the shapes that the tiny base has."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from manytune.methods.registry import peft_config_from
from manytune.model.attach import get_peft_model
from manytune.store.adapters import save_adapter
from manytune.store.base import Base
from manytune.store.manifest import Description


def make_adapter(directory: Path, base: Base, *, seed: int = 0, method: str = "lora", **options: Any) -> Path:
    """Write an adapter of the tiny base with random values, as a run does."""
    if method in ("lora", "ia3") and "target_modules" not in options:
        options["target_modules"] = (
            ["q_proj", "v_proj"] if method == "lora" else ["k_proj", "v_proj", "down_proj"]
        )
        if method == "ia3":
            options["feedforward_modules"] = ["down_proj"]
    if method == "lora":
        options.setdefault("r", 2)
    options.setdefault("task_type", "SEQ_2_SEQ_LM" if base.is_encoder_decoder else "CAUSAL_LM")
    model = get_peft_model(copy.deepcopy(base.model), peft_config_from(method, **options))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape))
    description = Description(
        method=method,
        base=base.name,
        fingerprint=base.fingerprint,
        template={"prompt": "{{ text }}", "completion": "{{ answer }}"},
        encoding="plain",
        scores={"validation_loss": 1.0 + seed},
    )
    save_adapter(model, directory, description)
    return directory
