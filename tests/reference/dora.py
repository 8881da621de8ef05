"""DoRA as the paper writes it (arXiv 2402.09353, equation 5), one output at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def dora_weight(weight: Tensor, delta: Tensor, magnitude: Tensor) -> Tensor:
    """W' whose row i is m_i (W + ΔW)_i / ‖(W + ΔW)_i‖.

    Args:
        weight: W: (out, ...).
        delta: ΔW, of the same shape.
        magnitude: m: (out,).
    """
    rows = []
    for row, change, m in zip(weight, delta, magnitude.flatten(), strict=True):
        moved = row + change
        rows.append(m * moved / moved.square().sum().sqrt())
    return torch.stack(rows)
