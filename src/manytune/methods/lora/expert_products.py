"""Grouped experts with LoRA next to their weights, rather than in them.

    u = W_up[e] x + s · B_up[e] A_up[e] D(x)        y = W_down[e] g(u) + s · B_down[e] A_down[e] D(g(u))

for each token x and each expert e that its router chose; g is the experts' own gate. This computes what the layer
computes with W' = W + s · BA (see `parameters.py`), and needs no copy of its weights: neither in memory, where the
backward pass would keep one for each layer, nor in half precision, where an update that is small next to W would be
rounded away. Dropout D on the way into A, which W' has no place for, is possible here.

It is made for experts that follow transformers' interface for grouped experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from manytune.own_dtype import runs_in_own_dtype

_UP = ("gate_up_proj", "up_proj")
_DOWN = "down_proj"
_INTERFACE = (
    "has_gate",
    "has_bias",
    "has_post_expert_norm",
    "is_transposed",
    "num_experts",
    "_is_expert_parallel",
)


class LowRank(NamedTuple):
    """One adapter's part at one parameter.

    Attributes:
        a: (experts, r, in).
        b: (experts, out, r).
        scaling: s.
        dropout: D.
    """

    a: Tensor
    b: Tensor
    scaling: float
    dropout: nn.Module


def follows_interface(experts: nn.Module, names: Sequence[str]) -> bool:
    """Whether a layer is one of transformers' grouped experts, and some of its parameters are their projections."""
    known = all(hasattr(experts, name) for name in _INTERFACE) and hasattr(experts, "_apply_gate")
    if not known or experts._is_expert_parallel:
        return False
    return set(names) <= {_UP[0] if experts.has_gate else _UP[1], _DOWN}


def is_hooked(module: nn.Module) -> bool:
    """Whether something wants to know of a module's calls, or to make them its own way."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks) or ("forward" in vars(module) and not runs_in_own_dtype(module))


def experts_forward(
    experts: Any,
    updates: Mapping[str, Sequence[LowRank]],
    hidden: Tensor,
    chosen: Tensor,
    shares: Tensor,
) -> Tensor:
    """The output of grouped experts with adapters.

    Args:
        experts: The base's layer.
        updates: The adapters at each of its projections, by parameter.
        hidden: Tokens, (tokens, hidden).
        chosen: The experts of each token, (tokens, k).
        shares: What each of them counts, (tokens, k).

    Returns:
        (tokens, hidden), in the tokens' dtype.
    """
    flat = chosen.reshape(-1)
    numbers, order = torch.sort(flat, stable=True)
    sizes = torch.bincount(flat, minlength=experts.num_experts).tolist()
    x = hidden[order // chosen.shape[-1]]  # (tokens · k, hidden), expert by expert
    up = _UP[0] if experts.has_gate else _UP[1]
    x = _projected(experts, up, updates.get(up, ()), x, numbers, sizes)
    x = experts._apply_gate(x) if experts.has_gate else experts.act_fn(x)
    x = _projected(experts, _DOWN, updates.get(_DOWN, ()), x, numbers, sizes)
    if experts.has_post_expert_norm:
        x = experts.post_expert_norm(x)
    weighted = x * shares.reshape(-1)[order].unsqueeze(-1)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return weighted[back].view(*chosen.shape, -1).sum(dim=-2).to(hidden.dtype)


def _projected(
    experts: Any, name: str, updates: Sequence[LowRank], x: Tensor, numbers: Tensor, sizes: Sequence[int]
) -> Tensor:
    weight = experts.get_parameter(name)
    y = _each(x, weight if experts.is_transposed else weight.transpose(1, 2), sizes)
    if experts.has_bias:
        y = y + experts.get_parameter(f"{name}_bias")[numbers]
    for one in updates:
        low = _each(one.dropout(x.to(one.a.dtype)), one.a.transpose(1, 2), sizes)
        y = (y + _each(low, one.b.transpose(1, 2), sizes) * one.scaling).to(y.dtype)
    return y


def _each(x: Tensor, weights: Tensor, sizes: Sequence[int]) -> Tensor:
    """Each expert's rows of x times its weight, in that one's dtype: (rows, in), (experts, in, out) to (rows, out)."""
    parts = zip(x.to(weights.dtype).split(list(sizes)), weights.unbind(), strict=True)
    return torch.cat([rows @ weight for rows, weight in parts]).to(x.dtype)
