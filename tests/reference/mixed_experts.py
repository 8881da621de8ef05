"""The slow twin of routers and grouped experts in the mixed forward: each token by itself, in a layer of its own."""

from __future__ import annotations

import copy

import torch


def mixed(layer, path, tokens, adapters):
    """What a layer gives when each token's adapter has been added to the weights of a copy of it.

    Args:
        layer: The base's layer.
        path: Its path.
        tokens: For each token the layer's arguments, each (1, ...).
        adapters: For each token what its adapter adds to parameters, by their paths; empty for none.

    Returns:
        The layer's result, or each of its results, for all tokens.
    """
    found = []
    for arguments, updates in zip(tokens, adapters, strict=True):
        own = copy.deepcopy(layer)
        for name, weight in own.named_parameters():
            if f"{path}.{name}" in updates:
                weight.data += added(updates[f"{path}.{name}"], transposed=transposed(layer, weight))
        found.append(own(*arguments))
    if isinstance(found[0], torch.Tensor):
        return torch.cat(found)
    return tuple(torch.cat(each) for each in zip(*found, strict=True))


def transposed(layer, weight):
    """Whether experts' weights are kept as (experts, in, out)."""
    return weight.dim() == 3 and getattr(layer, "is_transposed", False)


def added(update, *, transposed):
    """s U D, expert by expert, in the order in which the weight is kept."""
    if update.down.dim() == 2:
        return update.scaling * update.up @ update.down
    each = [update.scaling * up @ down for up, down in zip(update.up, update.down, strict=True)]
    return torch.stack([one.T if transposed else one for one in each])
