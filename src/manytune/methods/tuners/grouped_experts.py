"""Grouped experts and routers: what transformers' mixtures of experts consist of, and running them with updates.

    u = W_up[e] x + …        y = W_down[e] g(u) + …

for each token x and each expert e that its router chose; g is the experts' own gate, and … are the updates. The layer's
weights are left alone, so that no copy of them is needed: neither in memory, where the backward pass would keep one for
each layer, nor in half precision, where an update that is small next to W would be rounded away.

It is made for experts that follow transformers' interface for grouped experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from manytune.methods.tuners.targets import base_of, candidates
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


@dataclass(frozen=True)
class Routing:
    """Which expert reads which token: pairs of a token and one of its experts, expert by expert.

    Attributes:
        order: The place of each pair among all pairs token by token: token · k + choice, (pairs,).
        experts: The expert of each pair, (pairs,).
        sizes: How many pairs each expert has.
        groups: With owners, each expert's pairs by their token's owner: expert, owner, and which pairs.
    """

    order: Tensor
    experts: Tensor
    sizes: Sequence[int]
    groups: Sequence[tuple[int, int, slice]] = ()


#: What a projection gives with updates: of its name, its inputs (pairs, in), and its results (pairs, out), which may be
#: changed in place.
Added = Callable[[str, Tensor, Tensor, Routing], Tensor]


def follows_interface(experts: nn.Module, names: Sequence[str]) -> bool:
    """Whether a layer is one of transformers' grouped experts, and some of its parameters are their projections."""
    known = all(hasattr(experts, name) for name in _INTERFACE) and hasattr(experts, "_apply_gate")
    if not known or experts._is_expert_parallel:
        return False
    return set(names) <= {_UP[0] if experts.has_gate else _UP[1], _DOWN}


def expert_parameters(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """The parameters that hold a matrix of each expert: the path of their layer, their name there, and themselves."""
    for path, module in candidates(model):
        layer = base_of(module)
        for name, parameter in layer._parameters.items():
            if parameter is None or parameter.dim() != 3 or not parameter.is_floating_point():
                continue
            if "expert" in f"{path} {type(layer).__name__}".lower():
                yield path, name, parameter


def is_router(module: nn.Module) -> bool:
    """Whether a layer chooses experts for each token by itself, with a matrix (experts, in) of its own."""
    weight = module._parameters.get("weight")
    return "Router" in type(module).__name__ and weight is not None and weight.dim() == 2


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
    experts: Any, added: Added, hidden: Tensor, chosen: Tensor, shares: Tensor, owners: Tensor | None = None
) -> Tensor:
    """The output of grouped experts with updates.

    Args:
        experts: The base's layer.
        added: Adds the updates to what a projection gives.
        hidden: Tokens, (tokens, hidden).
        chosen: The experts of each token, (tokens, k).
        shares: What each of them counts, (tokens, k).
        owners: A number from 0 for each token, (tokens,), by which updates differ; None if they don't.

    Returns:
        (tokens, hidden), in the tokens' dtype.
    """
    routing = _routing(chosen, experts.num_experts, owners)
    x = hidden[routing.order // chosen.shape[-1]]  # (tokens · k, hidden), expert by expert
    x = _projected(experts, _UP[0] if experts.has_gate else _UP[1], added, x, routing)
    x = experts._apply_gate(x) if experts.has_gate else experts.act_fn(x)
    x = _projected(experts, _DOWN, added, x, routing)
    if experts.has_post_expert_norm:
        x = experts.post_expert_norm(x)
    weighted = x * shares.reshape(-1)[routing.order].unsqueeze(-1)
    back = torch.empty_like(routing.order)
    back[routing.order] = torch.arange(len(back), device=back.device)
    return weighted[back].view(*chosen.shape, -1).sum(dim=-2).to(hidden.dtype)


def _routing(chosen: Tensor, experts: int, owners: Tensor | None) -> Routing:
    flat = chosen.reshape(-1)
    sizes = torch.bincount(flat, minlength=experts).tolist()
    if owners is None:
        numbers, order = torch.sort(flat, stable=True)
        return Routing(order, numbers, sizes)
    # Sorted by expert first, so that the base's products are as few as without owners.
    kinds = int(owners.max()) + 1
    keys, order = torch.sort(flat * kinds + owners.repeat_interleave(chosen.shape[-1]), stable=True)
    groups, start = [], 0
    for key, count in zip(
        *(found.tolist() for found in keys.unique_consecutive(return_counts=True)), strict=True
    ):
        groups.append((key // kinds, key % kinds, slice(start, start + count)))
        start += count
    return Routing(order, keys // kinds, sizes, groups)


def _projected(experts: Any, name: str, added: Added, x: Tensor, routing: Routing) -> Tensor:
    weight = experts.get_parameter(name)
    y = each_expert(x, weight if experts.is_transposed else weight.transpose(1, 2), routing.sizes)
    if experts.has_bias:
        y = y + experts.get_parameter(f"{name}_bias")[routing.experts]
    return added(name, x, y, routing)


def each_expert(x: Tensor, weights: Tensor, sizes: Sequence[int]) -> Tensor:
    """Each expert's rows of x times its weight, in that one's dtype: (rows, in), (experts, in, out) to (rows, out)."""
    parts = zip(x.to(weights.dtype).split(list(sizes)), weights.unbind(), strict=True)
    return torch.cat([rows @ weight for rows, weight in parts]).to(x.dtype)
