"""Updates of routers and grouped experts as llama.cpp keeps their weights, each projection in a tensor of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from manytune.methods.tuners.terms import ParameterUpdate

#: What transformers keeps in one parameter, and llama.cpp in two.
_BOTH = "gate_up_proj"


def in_single_projections(
    updates: Mapping[str, ParameterUpdate], model: nn.Module
) -> dict[str, ParameterUpdate]:
    """Updates by the path of the layer that a projection would be: `experts.gate_proj` and `gate`.

    Args:
        updates: By path of the parameter.
        model: The base.
    """
    found: dict[str, ParameterUpdate] = {}
    for path, update in updates.items():
        holder, _, name = path.rpartition(".")
        if name == "weight":
            found[holder] = update
        elif name == _BOTH:
            for projection, up in zip(
                ("gate_proj", "up_proj"), _halves(update.up, model, holder), strict=True
            ):
                found[f"{holder}.{projection}"] = ParameterUpdate(update.down, up, update.scaling)
        else:
            found[path] = update
    return found


def _halves(up: Tensor, model: nn.Module, experts: str) -> tuple[Tensor, Tensor]:
    """The rows of U that belong to the gate, and the others: one after the other, or in turns."""
    layer: Any = model.get_submodule(experts)
    if layer.is_concatenated:
        gate, other = up.chunk(2, dim=1)
        return gate, other
    return up[:, ::2], up[:, 1::2]
