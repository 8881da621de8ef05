"""The slow twin of the small products and factors: each token by itself, with its own adapter's formula."""

from __future__ import annotations

import torch


def mixed(x, base, adapters, activation):
    """y = c ⊙ (W (a ⊙ x) + b) + d + s U φ(D x + e) + s f for each token.

    Args:
        x: (tokens, in).
        base: The linear layer.
        adapters: For each token its (update, factors), either of which may be None.
        activation: φ.
    """
    rows = []
    for token, (update, factors) in zip(x, adapters, strict=True):
        read = token if factors is None or factors.inputs is None else token * factors.inputs
        y = base.weight @ read + (0 if base.bias is None else base.bias)
        if factors is not None and factors.outputs is not None:
            y = y * factors.outputs + (0 if factors.shift is None else factors.shift)
        if update is not None:
            low = update.down @ token + (0 if update.down_bias is None else update.down_bias)
            y = y + update.scaling * (
                update.up @ activation(low) + (0 if update.up_bias is None else update.up_bias)
            )
        rows.append(y)
    return torch.stack(rows)
