"""Sums of a weight and its updates; and merging without a copy of the base's weights: what that leaves behind."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manytune.errors import AdapterError, PeftWarning
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


#: Gives a layer's present parameters with some adapters written in; see `AdapterLayer.merged_tensors`.
MergedTensors = Callable[[Sequence[str]], dict[str, Tensor]]


def add_in_place(layer: nn.Module, names: Sequence[str], merged_tensors: MergedTensors) -> MergeError:
    """Write adapters into a layer's own weights, and state what `subtract_in_place` will leave behind.

    Args:
        layer: The layer of the base.
        names: The adapters.
        merged_tensors: See `MergedTensors`.
    """
    before: dict[str, Tensor] = {}
    for name in names:
        merged = merged_tensors([name])
        before |= {k: layer.get_parameter(k).clone() for k in merged.keys() - before.keys()}
        _assign(layer, merged)
    after = {key: layer.get_parameter(key).clone() for key in before}
    # Rehearse the way back, so that the error stated is the error that will be.
    for name in reversed(names):
        subtract_in_place(layer, name, merged_tensors)
    total = MergeError(0, 0, 0.0)
    for key, value in before.items():
        difference = (layer.get_parameter(key) - value).abs()
        largest = float(difference.max()) if value.numel() else 0.0
        total += MergeError(int((difference != 0).sum()), value.numel(), largest)
    _assign(layer, after)
    return total


def subtract_in_place(layer: nn.Module, name: str, merged_tensors: MergedTensors) -> None:
    """Take an adapter out of a layer's own weights again, which rounds."""
    # merged_tensors gives W + ΔW for the present W, so W - ((W + ΔW) - W) takes ΔW away.
    for key, value in merged_tensors([name]).items():
        parameter = layer.get_parameter(key)
        parameter.data.sub_(value.sub_(parameter.data))


def _assign(layer: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for key, value in tensors.items():
        layer.get_parameter(key).data.copy_(value)


def check_finite(merged: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Refuse merged weights that aren't finite.

    Raises:
        AdapterError: There are some.
    """
    for value in merged.values():
        if not torch.isfinite(value).all():
            raise AdapterError(
                f"NaNs detected in the merged weights. The adapter {', '.join(names)} seems to be broken"
            )


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


def added(weight: Tensor, deltas: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
    """W + Σ ΔW, summed in float32 at least and rounded once, to `dtype`."""
    total = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
    for delta in deltas:
        total += delta
    return total.to(dtype)
