"""LoRA's factors in pairs, for LoRA+ and LoRA-FA."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from manytune.methods.lora.layer import LoraLayer
from manytune.methods.tuners.factor_pairs import FactorPair


def lora_pairs(model: nn.Module) -> Iterator[FactorPair]:
    """The factors of every adapter that trains, layer by layer."""
    for path, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            for adapter in layer.r:
                yield from _pairs(path, layer, adapter)


def _pairs(path: str, layer: LoraLayer, adapter: str) -> Iterator[FactorPair]:
    tensors, scaling = layer.tensors(adapter), layer.scaling[adapter]
    for a_name, b_name in (
        ("lora_A.weight", "lora_B.weight"),
        ("lora_embedding_A", "lora_embedding_B"),
    ):
        if a_name in tensors and tensors[b_name].requires_grad:
            a, b = tensors[a_name], tensors[b_name]
            odd = "it has DoRA's magnitudes" if layer.use_dora[adapter] else None
            rank = layer.r[adapter]
            if a.shape != (rank, layer.in_features) or b.shape != (layer.out_features, rank):
                odd = f"it is a {type(layer.base_layer).__name__}, whose factors aren't two matrices"
            elif a_name != "lora_A.weight":
                odd = "it is an embedding, whose A starts at zero"
            yield FactorPair(path, a, b, scaling, odd)
