"""Merging in low memory, what that leaves behind, and what merging says about itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manytune.errors import PeftWarning
from manytune.methods.tuners.quantized_layers import quantization_backend


@dataclass(frozen=True)
class MergeError:
    """What a low-memory merge will leave behind once it is unmerged.

    Attributes:
        changed: Number of base weights that will differ.
        total: Number of base weights in the merged tensors.
        largest: Largest absolute difference.
    """

    changed: int
    total: int
    largest: float

    def __add__(self, other: MergeError) -> MergeError:
        return MergeError(
            self.changed + other.changed, self.total + other.total, max(self.largest, other.largest)
        )


Merged = Callable[[Sequence[str]], Mapping[str, Tensor]]
"""A layer's parameters by name, as they are now but with these adapters added."""


@torch.no_grad()
def add_in_place(layer: nn.Module, merged: Merged, names: Sequence[str]) -> MergeError:
    """Add adapters to a layer's parameters.

    Args:
        layer: The layer of the base.
        merged: What adapters make of its parameters; they must add what doesn't depend on them.
        names: The adapters.

    Returns:
        How far from the present parameters `subtract_in_place` will lead.
    """
    before: dict[str, Tensor] = {}
    for name in names:
        sums = merged([name])
        before |= {key: layer.get_parameter(key).clone() for key in sums.keys() - before.keys()}
        _assign(layer, sums)
    after = {key: layer.get_parameter(key).clone() for key in before}
    # Rehearse the way back, so that the error stated is the error that will be.
    subtract_in_place(layer, merged, names)
    total = MergeError(0, 0, 0.0)
    for key, value in before.items():
        difference = (layer.get_parameter(key) - value).abs()
        largest = float(difference.max()) if value.numel() else 0.0
        total += MergeError(int((difference != 0).sum()), value.numel(), largest)
    _assign(layer, after)
    return total


@torch.no_grad()
def subtract_in_place(layer: nn.Module, merged: Merged, names: Sequence[str]) -> None:
    """Take adapters out again that `add_in_place` has added in this order; it rounds."""
    for name in reversed(names):
        # These are W + ΔW for the present W, so W - ((W + ΔW) - W) takes ΔW away.
        for key, value in merged([name]).items():
            parameter = layer.get_parameter(key)
            parameter.data.sub_(value.sub_(parameter.data))


def _assign(layer: nn.Module, values: Mapping[str, Tensor]) -> None:
    for key, value in values.items():
        layer.get_parameter(key).data.copy_(value)


def warn_of_merge_error(error: MergeError) -> None:
    """State what a low-memory merge costs."""
    warnings.warn(
        f"Merged in low memory: no copy of the base weights is kept, so unmerging rounds. Of {error.total:,} weights "
        f"{error.changed:,} ({error.changed / error.total:.2%}) will differ from the base afterwards, by at most "
        f"{error.largest:.3g}. Merge without low_memory for an exact base.",
        PeftWarning,
        stacklevel=3,
    )


def warn_of_dequantizing(layers: Sequence[nn.Module]) -> None:
    """State that those of the base's layers that are packed will be kept in full precision; nothing if none is."""
    packed = [layer for layer in layers if quantization_backend(layer)]
    if packed:
        warnings.warn(
            f"Merging dequantizes: a weight packed by {quantization_backend(packed[0])} can't take up an adapter, so "
            f"{len(packed)} layers are kept in full precision while adapters are merged. Unmerging puts the packed "
            "ones back.",
            PeftWarning,
            stacklevel=4,
        )
