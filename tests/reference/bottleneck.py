"""A bottleneck adapter, one token at a time, as the papers draw it."""

from __future__ import annotations

import torch
from torch import Tensor


def bottleneck(
    y: Tensor, read: Tensor, down: tuple[Tensor, Tensor], up: tuple[Tensor, Tensor], scaling: float
) -> Tensor:
    """y + s · (U relu(D x + d) + u) for each token.

    Args:
        y: (tokens, hidden): what the sublayer gives.
        read: (tokens, hidden): what the adapter reads.
        down: D (bottleneck, hidden) and d (bottleneck,).
        up: U (hidden, bottleneck) and u (hidden,).
        scaling: s.
    """
    rows = []
    for token, x in zip(y, read, strict=True):
        low = [float((row * x).sum() + bias) for row, bias in zip(*down, strict=True)]
        small = torch.tensor([max(value, 0.0) for value in low], dtype=y.dtype)
        rows.append(token + scaling * ((up[0] * small).sum(dim=1) + up[1]))
    return torch.stack(rows)
