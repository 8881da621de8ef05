"""The slow twin of the mixed forward: each token by itself, with its own adapter's formula."""

from __future__ import annotations

import torch


def mixed(x, base, adapters, activation):
    """y = c ⊙ (W (a ⊙ x) + b) + d + s U φ(D z + e) + s f for each token.

    Args:
        x: (tokens, ...), what each token gives the layer.
        base: The layer.
        adapters: For each token its (update, factors), either of which may be None.
        activation: φ.
    """
    rows = []
    for token, (update, factors) in zip(x, adapters, strict=True):
        read = token if factors is None or factors.inputs is None else token * factors.inputs
        y = base(read)
        if factors is not None:
            y = y * (1 if factors.outputs is None else factors.outputs)
            y = y + (0 if factors.shift is None else factors.shift)
        if update is not None:
            z = token
            if update.lookup:
                z = torch.nn.functional.one_hot(token, update.inputs).to(y.dtype)
            low = z if update.down is None else update.down @ z
            low = low + (0 if update.down_bias is None else update.down_bias)
            y = y + update.scaling * (
                update.up @ activation(low) + (0 if update.up_bias is None else update.up_bias)
            )
        rows.append(y)
    return torch.stack(rows)
