"""What merging leaves behind, and what it says about that."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

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
