"""Updates of routers and grouped experts of many adapters: each token's own W + s U D.

Grouped experts run once for all tokens: pairs of a token and one of its experts are sorted by expert, then by adapter,
so that the base's weights are read once for each expert, and U and D once for each expert and adapter. What a router
makes of W x is its own, so it runs once for each adapter on that adapter's tokens, with s U D in its matrix.

An adapter's tensors aren't put into a stack: they are large, and products over few tokens of an expert would gain
nothing from it.

Semantics (`tests/reference/mixed_experts.py`): for each token, the layer with its own adapter's weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from manytune.errors import AdapterError
from manytune.methods.tuners.grouped_experts import Routing, experts_forward
from manytune.methods.tuners.terms import ParameterUpdate


@dataclass(frozen=True)
class HeldUpdate:
    """One adapter's update of one parameter, as it is multiplied.

    Attributes:
        down: D, (rank, in) or (experts, rank, in); the adapter's own memory where that suits.
        up: s Uᵀ, (rank, out) or (experts, rank, out).
        nbytes: What was made for it.
    """

    down: Tensor
    up: Tensor
    nbytes: int


def held_bytes(update: ParameterUpdate, dtype: torch.dtype) -> int:
    """The size of what `held` makes, before it is made."""
    down = 0 if update.down.dtype == dtype else update.down.numel()
    return (down + update.up.numel()) * dtype.itemsize


def held(update: ParameterUpdate, device: torch.device, dtype: torch.dtype) -> HeldUpdate:
    """An update on a device, ready to be multiplied."""
    source = update.down.detach()
    down = source.to(device, dtype)
    # Multiplied into new memory, of which each expert's part is in one piece.
    up = update.up.detach().to(device, dtype).mT.contiguous() * update.scaling
    made = (up,) if down is source else (down, up)
    return HeldUpdate(down, up, sum(tensor.numel() * tensor.element_size() for tensor in made))


@dataclass(frozen=True)
class ParameterTerms:
    """What adapters add to one layer's parameters in the present forward.

    Attributes:
        updates: By slot, which counts the forward's adapters from 1, and by the parameter's name.
        slots: The slot of each row, `(rows,)`, for a number of rows; 0 for none, and None if no row has one.
    """

    updates: Mapping[int, Mapping[str, HeldUpdate]]
    slots: Callable[[int], Tensor | None]

    def forward(self, module: nn.Module, base: Callable[..., Any]) -> Callable[..., Any]:
        """What computes the layer.

        Args:
            module: The base's layer, a router or grouped experts.
            base: What computes it without adapters.
        """
        some = next(iter(next(iter(self.updates.values())).values()))
        return self._experts(module, base) if some.down.dim() == 3 else self._router(module, base)

    def _experts(self, module: nn.Module, base: Callable[..., Any]) -> Callable[..., Any]:
        def experts(hidden: Tensor, chosen: Tensor, shares: Tensor) -> Any:
            owners = self.slots(len(hidden))
            if owners is None:
                return base(hidden, chosen, shares)
            return experts_forward(module, self._added, hidden, chosen, shares, owners)

        return experts

    def _added(self, name: str, x: Tensor, y: Tensor, routing: Routing) -> Tensor:
        for expert, owner, rows in routing.groups:
            update = self.updates.get(owner, {}).get(name)
            if update is None:
                continue
            low = x[rows].to(update.down.dtype) @ update.down[expert].T
            if y.dtype == update.up.dtype:
                y[rows].addmm_(low, update.up[expert])
            else:
                # Adapters in float32 on a half-precision base: summed in float32 and rounded once.
                y[rows] = (y[rows] + low @ update.up[expert]).to(y.dtype)
        return y

    def _router(self, module: nn.Module, base: Callable[..., Any]) -> Callable[..., Any]:
        def router(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            flat = x.reshape(-1, x.shape[-1])
            owners = self.slots(len(flat))
            if owners is None:
                return base(x, *args, **kwargs)
            parts, places = [], []
            for owner in owners.unique().tolist():
                mine = (owners == owner).nonzero().flatten()
                run = partial(type(module).forward, self._with_weights(module, owner)) if owner else base
                parts.append(run(flat[mine], *args, **kwargs))
                places.append(mine)
            return _put_together(parts, torch.cat(places), type(module).__name__)

        return router

    def _with_weights(self, module: nn.Module, owner: int) -> nn.Module:
        """The layer with an adapter in its weights, as an object of its own: the base's may run elsewhere meanwhile."""
        found: dict[str, Tensor | None] = dict(module._parameters)
        for name, update in self.updates.get(owner, {}).items():
            weight = module.get_parameter(name)
            wide = torch.promote_types(weight.dtype, update.up.dtype)
            found[name] = (weight.to(wide) + (update.up.T @ update.down).to(wide)).to(weight.dtype)
        twin = copy.copy(module)
        twin.__dict__["_parameters"] = found
        return twin


def _put_together(parts: list[Any], places: Tensor, kind: str) -> Any:
    """What a layer gave for some rows at a time as what it gives for all of them; a tensor, or several."""
    first = parts[0]
    if not isinstance(first, Tensor):
        return tuple(_put_together(list(each), places, kind) for each in zip(*parts, strict=True))
    whole = torch.cat(parts)
    if len(whole) != len(places):
        raise AdapterError(
            f"{kind} gives {len(whole)} rows for {len(places)} tokens, so adapters on it can't share a batch. Run one "
            "adapter at a time."
        )
    result = torch.empty_like(whole)
    result[places] = whole
    return result
