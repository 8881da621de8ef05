"""How many parameters train, of how many."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """The number of parameters that train, and of all; tied ones count once, packed 4-bit ones at their true number."""
    trainable = total = 0
    for parameter in model.parameters():
        count = _true_size(parameter)
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total


def accounting_line(trainable: int, total: int) -> str:
    """The line that HF PEFT prints."""
    share = 100 * trainable / total
    return f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}"


def _true_size(parameter: Tensor) -> int:
    shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return parameter.numel() if shape is None else int(torch.Size(shape).numel())
