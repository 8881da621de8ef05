"""The base's linear layers in bfloat16, on processors that multiply it faster than float32.

Weights and inputs are rounded to bfloat16, products are accumulated in float32. Of a base whose checkpoint is in
bfloat16 the weights keep their values.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from manytune.engine.reordered_weights import can_reorder, reordered_layers
from manytune.errors import ConfigError
from manytune.methods.tuners.quantized_layers import packed_parameters
from manytune.mixed.layers import Forward


def require_bfloat16() -> None:
    """Refuse where bfloat16 would be slower than float32.

    Raises:
        ConfigError: The processor has no products in bfloat16.
    """
    if not multiplies_bfloat16():
        raise ConfigError(
            "weights='bf16': this processor has neither avx512_bf16 nor AMX (on ARM: BF16), so products in bfloat16 "
            "would be slower than in float32. Use weights='plain'."
        )


def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def bfloat16_layers(model: PreTrainedModel) -> Mapping[str, Forward]:
    """Forwards that compute the model's linear layers in bfloat16, by path; they give what they are given in dtype.

    Args:
        model: On a CPU. It isn't changed.

    Raises:
        ConfigError: The model isn't on a CPU, or its weights are packed or in float16.
    """
    packed = packed_parameters(model)
    if packed:
        reason = f"the base's weights are packed by {next(iter(packed.values()))} already"
    elif model.device.type != "cpu":
        reason = f"this form is for CPUs, and the model is on {model.device}; load it with dtype bfloat16"
    elif not can_reorder(model):
        reason = f"torch has no such products here for a model in {model.dtype}; load it with dtype bfloat16"
    else:
        return reordered_layers(model, torch.bfloat16)
    raise ConfigError(f"weights='bf16': {reason}. Use weights='plain'.")
