"""PiSSA and OLoRA adapters as plain LoRA ones.

Such an adapter runs next to W - s·B₀A₀, so that it fits no other model than one that was changed in the same way. Its
difference to where it started is a plain LoRA adapter of twice the rank, for the untouched W:

    ΔW = s (BA - B₀A₀) = s [B, -B₀] [A; A₀]
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from manytune.errors import CheckpointError, ConfigError
from manytune.methods.checkpoint.format import read_tensors
from manytune.methods.lora.config import LoraConfig


def as_plain_lora(
    config: LoraConfig, tensors: Mapping[str, Tensor], initial: str | Path
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Turn an adapter that starts from the base's weights into one for the untouched base.

    Args:
        config: The adapter's options.
        tensors: Its tensors, named as in a checkpoint.
        initial: Directory in which the same adapter was saved before its training.

    Returns:
        Options and tensors of a plain LoRA adapter of twice the rank.

    Raises:
        ConfigError: The adapter has both `use_rslora` and patterns.
        CheckpointError: The initial adapter lacks a tensor or has another shape.
    """
    if config.use_rslora and (config.rank_pattern or config.alpha_pattern):
        raise ConfigError(
            "Passing `path_initial_model_for_weight_conversion` to `save_pretrained` is not supported when using "
            "`rank_pattern` or `alpha_pattern` at the same time as `use_rslora=True`."
        )
    first = read_tensors(initial)
    converted = {}
    for name, tensor in tensors.items():
        is_a, is_b = ".lora_A." in name, ".lora_B." in name
        if not (is_a or is_b):
            converted[name] = tensor
            continue
        if name not in first or first[name].shape != tensor.shape:
            found = tuple(first[name].shape) if name in first else "nothing"
            raise CheckpointError(
                f"{initial}: expected {name} of shape {tuple(tensor.shape)}, as the adapter had before its training; "
                f"found {found}."
            )
        start = first[name].to(tensor.device, tensor.dtype)
        converted[name] = torch.cat([tensor, start if is_a else -start], dim=0 if is_a else 1)
    # The scaling must stay: alpha / r, or alpha / √r.
    growth = math.sqrt(2) if config.use_rslora else 2
    return (
        dataclasses.replace(
            config,
            init_lora_weights=True,
            r=2 * config.r,
            lora_alpha=growth * config.lora_alpha,
            rank_pattern={key: 2 * rank for key, rank in (config.rank_pattern or {}).items()},
            alpha_pattern={key: 2 * alpha for key, alpha in (config.alpha_pattern or {}).items()},
        ),
        converted,
    )
