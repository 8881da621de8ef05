"""The slow twin of the small products and factors: each token by itself, with its own adapter's formula."""

from __future__ import annotations

import torch


def mixed(x, base, adapters, between):
    """y = c ⊙ (W (a ⊙ x) + b) + d + s U φ(D x + e) + s f for each token.

    Args:
        x: (tokens, in).
        base: The linear layer.
        adapters: For each token its (pair, factors), either of which may be None.
        between: φ.
    """
    rows = []
    for token, (pair, factors) in zip(x, adapters, strict=True):
        read = token if factors is None or factors.inputs is None else token * factors.inputs
        y = base.weight @ read + (0 if base.bias is None else base.bias)
        if factors is not None and factors.outputs is not None:
            y = y * factors.outputs + (0 if factors.shift is None else factors.shift)
        if pair is not None:
            low = pair.down @ token + (0 if pair.down_bias is None else pair.down_bias)
            y = y + pair.scaling * (pair.up @ between(low) + (0 if pair.up_bias is None else pair.up_bias))
        rows.append(y)
    return torch.stack(rows)
