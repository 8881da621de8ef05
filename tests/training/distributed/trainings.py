"""Trainings that are run on one process and on several, and what they come to."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.store.tiny import tiny_model
from tests.training.tiny_run import VOCABULARY, as_rows, settings
from torch import nn

from manytune.data.encoding.encoded import Encoded
from manytune.methods.registry import peft_config_from
from manytune.model.attach import get_peft_model
from manytune.sharded import reshard, whole_for_files
from manytune.store.run_log import Report, StepReport
from manytune.training.distributed.processes import ALONE, Processes
from manytune.training.loop.train import train_model
from manytune.training.loop.validation import ValidationScores
from manytune.training.resume import Checkpoints, latest_checkpoint

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"r": 2, "target_modules": "all-linear"}),
    "dora": ("lora", {"r": 2, "target_modules": "all-linear", "use_dora": True}),
    "ia3": ("ia3", {}),
    "prefix": ("prefix-tuning", {"num_virtual_tokens": 3}),
    "bottleneck": ("bottleneck", {"bottleneck_size": 4}),
    "full": ("full", {}),
}
#: Others, for what differs in how a method holds its weights.
OTHER_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "projected prefix": ("prefix-tuning", {"num_virtual_tokens": 3, "prefix_projection": True}),
    "prompt": ("prompt-tuning", {"num_virtual_tokens": 3}),
    "p-tuning": ("p-tuning", {"num_virtual_tokens": 3}),
    "layer norms": ("selective", {"parameters": ["layernorm"]}),
    "vera": ("vera", {"r": 4, "target_modules": ["q_proj"]}),
    "trained head": ("lora", {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "adapted embeddings": ("lora", {"r": 2, "target_modules": ["q_proj", "embed_tokens"]}),
    "tokens": ("trainable-tokens", {"token_indices": [4, 5, 6]}),
    "combined": (
        "combined",
        {
            "weights": {"name": "lora", "r": 2, "target_modules": ["q_proj"]},
            "prompt": {"name": "prompt-tuning", "num_virtual_tokens": 2},
        },
    ),
    "tokens next to lora": ("lora", {"r": 2, "trainable_token_indices": [4, 5]}),
}


class StoppedError(Exception):
    pass


def rows(count: int, seed: int = 0) -> list[Encoded]:
    """Rows with a common beginning in threes, and with 2 to 21 targets."""
    draw = random.Random(seed)

    def letters(length: int) -> tuple[int, ...]:
        return tuple(draw.choice(VOCABULARY) for _ in range(length))

    shared = [letters(8) for _ in range(-(-count // 3))]
    return [
        Encoded(
            (*shared[row // 3], *letters(2)), (*letters(20 if row % 3 == 0 else 1 + row % 2), 0), "rows", row
        )
        for row in range(count)
    ]


@dataclass
class Trained:
    """What a training comes to."""

    losses: list[float]
    validations: list[float]
    scores: list[dict[str, float]]
    rates: list[float]
    norms: list[float]
    epochs: list[float]
    tokens: tuple[int, ...]
    weights: dict[str, np.ndarray]  # torch's tensors don't outlive the process that sends them


def model_of(name: str, *, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    """The tiny model with a method, the same weights every time."""
    method, usual = {**METHODS, **OTHER_METHODS}[name]
    model = tiny_model().to(dtype)
    torch.manual_seed(0)
    return get_peft_model(model, peft_config_from(method, task_type="CAUSAL_LM", **{**usual, **options}))


def trained(
    processes: Processes,
    name: str = "lora",
    *,
    dtype: torch.dtype = torch.float32,
    options: dict[str, Any] | None = None,
    checkpoints: Path | None = None,
    stop_after: int | None = None,
    scores: ValidationScores | None = None,
    **changes: Any,
) -> Trained | None:
    """Train on 20 rows, 4 a batch, for 4 epochs, so 20 steps, but for the changes; None if it stopped in between."""
    model = model_of(name, dtype=dtype, **(options or {}))
    usual: dict[str, Any] = {"epochs": 4.0, "batch_size": 4, "learning_rate": 1e-3, "warmup": 0.1}
    if checkpoints is not None:
        usual["checkpoint_every"] = 1

    def stop(report: Report) -> None:
        if isinstance(report, StepReport) and report.step == stop_after:
            raise StoppedError

    try:
        result = train_model(
            model,
            as_rows(rows(20), rows(5, seed=1)),
            settings(**{**usual, **changes}),
            report=stop,
            checkpoints=None
            if checkpoints is None
            else Checkpoints(directory=checkpoints, resume_from=latest_checkpoint(checkpoints)),
            scores=scores,
            processes=processes,
        )
    except StoppedError:
        return None
    counted = result.counters
    return Trained(
        losses=[report.loss for report in result.step_reports],
        validations=[report.validation_loss for report in result.validation_reports],
        scores=[dict(report.scores) for report in result.validation_reports],
        rates=[report.learning_rate for report in result.step_reports],
        norms=[report.grad_norm for report in result.step_reports],
        epochs=[report.epoch for report in result.step_reports],
        tokens=(counted.tokens.tokens_in, counted.tokens.targets, counted.logit_rows),
        weights={name: tensor.numpy().copy() for name, tensor in whole_weights(model).items()},
    )


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """What trains; where the weights are sharded, all processes must call it."""
    reshard(model)
    return whole_for_files({n: p.detach() for n, p in model.named_parameters() if p.requires_grad})


def trained_alone(name: str = "lora", **changes: Any) -> Trained:
    """The same on one process."""
    found = trained(ALONE, name, **changes)
    assert found is not None
    return found
