"""How many parameters train, of how many; and of a mixture's experts, how many are adapted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manytune.methods.tuners.grouped_experts import expert_parameters
from manytune.methods.tuners.targeted import targeted_parameters


@dataclass(frozen=True)
class ExpertCounts:
    """The weights of a mixture's experts.

    Attributes:
        adapted: Numbers that an adapter changes, or that train themselves.
        all: How many there are.
    """

    adapted: int
    all: int


def count_experts(model: nn.Module) -> ExpertCounts | None:
    """What is adapted of a mixture's grouped experts; None for a model without any."""
    experts = [(f"{path}.{name}", parameter) for path, name, parameter in expert_parameters(model)]
    if not experts:
        return None
    targeted = set(targeted_parameters(model))
    adapted = sum(p.numel() for path, p in experts if path in targeted or p.requires_grad)
    return ExpertCounts(adapted, sum(parameter.numel() for _, parameter in experts))


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
