"""The slow twin of `methods/lora/fused.py`: separate operations, gradients by autograd."""

from __future__ import annotations

import torch
from torch import Tensor


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    *,
    dropout: float = 0.0,
) -> Tensor:
    """`x Wᵀ + b + s · D(x) Aᵀ Bᵀ`; the second part in A's dtype, the result in the first part's."""
    base = torch.nn.functional.linear(x, weight, bias)
    low = torch.nn.functional.dropout(x.to(lora_a.dtype), dropout)
    low = torch.nn.functional.linear(low, lora_a)
    update = torch.nn.functional.linear(low, lora_b) * scaling
    return (base + update).to(base.dtype)
