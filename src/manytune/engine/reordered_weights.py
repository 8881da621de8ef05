"""The base's linear layers in the order in which the processor multiplies fastest.

On x86 processors oneDNN multiplies a few rows with a weight up to three times as fast if the weight was put into its
own order once. Weights that read the same tensor are put side by side and multiplied at once. The copies take as
much memory again as the layers; results differ from the plain ones by rounding only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from manytune.mixed.layer_groups import LayerGroup, group_of, path_of, with_same_input
from manytune.mixed.layers import Forward

# The number of rows that the order is made for: it suits fewer and many more as well.
_ROWS = 32


def can_pack(model: PreTrainedModel) -> bool:
    """Whether the model's weights can be packed: float32 or bfloat16 on a CPU, and a torch with oneDNN."""
    return (
        model.device.type == "cpu"
        and model.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def packed_layers(model: PreTrainedModel) -> Mapping[str, Forward]:
    """Forwards that compute what the model's linear layers do, by path.

    Args:
        model: One that `can_pack` says yes to. It isn't changed, and must not change as long as these are in use.
    """
    found: dict[LayerGroup, list[int]] = {}
    for path, module in model.named_modules():
        if type(module) is nn.Linear:
            group, block = group_of(path, module.in_features, module.out_features)
            found.setdefault(group, []).append(block)
    forwards: dict[str, Forward] = {}
    for family in with_same_input(list(found)):
        for block in found[family[0]]:
            paths = [path_of(group, block) for group in family if block in found[group]]
            forwards.update(_packed([model.get_submodule(path) for path in paths], paths))
        for group in family[1:]:
            rest = [path_of(group, block) for block in found[group] if block not in found[family[0]]]
            for path in rest:
                forwards.update(_packed([model.get_submodule(path)], [path]))
    return forwards


@dataclass
class _Pack:
    """Layers side by side. `seen` and `result` are the last input and what they made of it."""

    weight: Tensor
    bias: Tensor | None
    seen: Tensor | None = None
    result: Tensor | None = None
    left: int = 0

    def all(self, x: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return result


def _packed(modules: Sequence[Any], paths: list[str]) -> dict[str, Forward]:
    weights = [module.get_parameter("weight").detach() for module in modules]
    biases = [None if module.bias is None else module.bias.detach() for module in modules]
    bias = None
    if any(one is not None for one in biases):
        zeros = (weight.new_zeros(weight.shape[0]) for weight in weights)
        bias = torch.cat([zero if one is None else one for one, zero in zip(biases, zeros, strict=True)])
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]
    pack = _Pack(torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS), bias)
    if len(modules) == 1:
        return {paths[0]: pack.all}
    ends = torch.tensor([len(weight) for weight in weights]).cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    return {
        path: _slice_of(pack, slice(start, end), len(modules))
        for path, start, end in zip(paths, starts, ends, strict=True)
    }


def _slice_of(pack: _Pack, columns: slice, readers: int) -> Forward:
    def forward(x: Tensor) -> Tensor:
        if pack.seen is not x or pack.result is None:
            pack.seen, pack.result, pack.left = x, pack.all(x), readers
        found = pack.result[..., columns]
        pack.left -= 1
        if not pack.left:
            # All have read: hold on to nothing.
            pack.seen = pack.result = None
        return found

    return forward
