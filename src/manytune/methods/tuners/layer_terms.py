"""What methods in the layers have in common when they state their terms: the tensors of a file, sorted by layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from manytune.methods.tuners.base_layers import BaseLayers
from manytune.methods.tuners.replaced import replaced_terms
from manytune.methods.tuners.saved_targets import lies_in
from manytune.methods.tuners.terms import FILE_PREFIX, INSTEAD, Terms, TermsError


def by_layer(
    tensors: Mapping[str, Tensor], containers: Collection[str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The tensors of an adapter's file by the path of their layer, and there by name; and those of no adapter layer.

    Args:
        tensors: By their names in the file.
        containers: What a method's layers call their tensors; see `AdapterLayer.adapter_layer_names`.

    Returns:
        For example `{"layers.0.q_proj": {"lora_A.weight": A}}` and `{"score.weight": W}`.

    Raises:
        TermsError: A name isn't one of a file, or there are no tensors of adapters.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not name.startswith(FILE_PREFIX):
            raise TermsError(
                f"expected tensors whose names begin with {FILE_PREFIX!r}, found {name!r}. Is the file one of this "
                "method's adapters?"
            )
        parts = name.removeprefix(FILE_PREFIX).split(".")
        place = next((i for i in reversed(range(len(parts))) if parts[i] in containers), None)
        if place is None:
            others[".".join(parts)] = tensor
        else:
            layers.setdefault(".".join(parts[:place]), {})[".".join(parts[place:])] = tensor
    if not layers and (containers or not others):
        names = ", ".join(f"*.{name}" for name in containers) or "the base's parameters"
        raise TermsError(f"expected tensors named as {names}, found none of them. Is the file whole?")
    return layers, others


def saved_terms(base: BaseLayers, config: Any, tensors: Mapping[str, Tensor]) -> Terms:
    """The terms of what a file holds apart from a method's own tensors.

    Those are modules trained in full; and tables of the base, which HF PEFT saves along and which change nothing.

    Args:
        base: The base.
        config: The adapter's options.
        tensors: By their names in the model.

    Raises:
        TermsError: A tensor is neither, or a module that was trained in full can't be written in terms.
    """
    saving = getattr(config, "modules_to_save", None) or ()
    trained = {name: tensor for name, tensor in tensors.items() if lies_in(name, saving)}
    for name in tensors.keys() - trained.keys():
        path, _, own = name.rpartition(".")
        layer = base.at(path)
        value = layer.value(own)
        if not layer.is_linear and not isinstance(layer.module, nn.Embedding):
            value = None
        if value is None or own != "weight" or not _equal(tensors[name], value):
            raise TermsError(
                f"{config.peft_type} adapter: its file holds {name!r}, which is neither a tensor of the method, nor of "
                f"modules_to_save={list(saving)}, nor the base's own table. {INSTEAD}"
            )
    return replaced_terms(base, trained, in_place=False)


def _equal(tensor: Tensor, value: Tensor) -> bool:
    return tensor.shape == value.shape and torch.equal(tensor.to(value.device, value.dtype), value)
