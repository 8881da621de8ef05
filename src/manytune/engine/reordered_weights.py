"""The base's linear layers with their weights in the memory order in which the processor multiplies fastest.

A few rows are multiplied with a weight up to three times as fast if it was reordered once beforehand
(`kernels/packed.py`). Layers that read the same tensor (queries, keys and values) are fused into one product. The
copies take as much memory again as the layers; results differ from the plain ones by rounding only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from manytune.kernels.fused import parts_of
from manytune.kernels.packed import can_pack, pack
from manytune.methods.tuners.quantized_layers import quantization_backend
from manytune.mixed.layer_groups import LayerGroup, group_of, path_of, with_same_input
from manytune.mixed.layers import Forward
from manytune.own_dtype import runs_in_own_dtype


def can_reorder(model: PreTrainedModel) -> bool:
    """Whether the model's weights can be reordered: float32 or bfloat16 on a CPU, where `can_pack` says so."""
    return model.device.type == "cpu" and can_pack(model.dtype)


def reordered_layers(model: PreTrainedModel, dtype: torch.dtype | None = None) -> Mapping[str, Forward]:
    """Forwards that compute the same as the model's linear layers, by path.

    Packed layers keep their own, and so do those that give float32 from weights in half precision.

    Args:
        model: One for which `can_reorder` is true. It isn't changed, and must not change while these are in use.
        dtype: What to round weights and inputs to before they are multiplied; None for the model's own. Products have
            their input's dtype.
    """
    found: dict[LayerGroup, list[int]] = {}
    for path, module in model.named_modules():
        is_usual = quantization_backend(module) is None and not runs_in_own_dtype(module)
        if type(module) is nn.Linear and is_usual:
            group, block = group_of(path, module.in_features, module.out_features)
            found.setdefault(group, []).append(block)
    forwards: dict[str, Forward] = {}
    for family in with_same_input(list(found)):
        for block in found[family[0]]:
            paths = [path_of(group, block) for group in family if block in found[group]]
            forwards.update(_fused([model.get_submodule(path) for path in paths], paths, dtype))
        for group in family[1:]:
            rest = [path_of(group, block) for block in found[group] if block not in found[family[0]]]
            for path in rest:
                forwards.update(_fused([model.get_submodule(path)], [path], dtype))
    return forwards


def reordered_layer(module: nn.Linear) -> Forward:
    """A forward that computes the same as a linear layer of a model for which `can_reorder` is true."""
    return _fused([module], [""], None)[""]


def _fused(modules: Sequence[Any], paths: list[str], dtype: torch.dtype | None) -> dict[str, Forward]:
    weights = [module.get_parameter("weight").detach() for module in modules]
    used = weights[0].dtype if dtype is None else dtype
    weights = [weight.to(used) for weight in weights]
    biases = [None if module.bias is None else module.bias.detach().to(used) for module in modules]
    bias = None
    if any(one is not None for one in biases):
        zeros = (weight.new_zeros(weight.shape[0]) for weight in weights)
        bias = torch.cat([zero if one is None else one for one, zero in zip(biases, zeros, strict=True)])
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]
    multiply = pack(weight).product(bias)

    def product(x: Tensor) -> Tensor:
        return multiply(x) if x.dtype == used else multiply(x.to(used)).to(x.dtype)

    return dict(zip(paths, parts_of(product, [len(one) for one in weights]), strict=True))
