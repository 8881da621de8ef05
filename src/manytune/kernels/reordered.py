"""Copies of weights in the memory order in which few rows are multiplied fastest, for as long as they are right.

Reordering takes as long as ten products with the weight and a few rows, so a copy pays if it is kept. Whether weights
are still what a copy was made of is seen from their content, which takes a few hundredths of a second for a gigabyte:
no version number tells of what is written through `.data`, or by another library.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from manytune.free_memory import free_memory
from manytune.kernels.build import load_kernels
from manytune.kernels.fingerprints import fingerprints
from manytune.kernels.packed import Packed, pack

#: A weight's content and shape.
_Identity = tuple[int, torch.Size]


@dataclass(frozen=True)
class _Copy:
    of: tuple[_Identity, ...]
    weight: Packed


class ReorderedWeights:
    """The copies of a model's weights. Copies and pickles of this object are empty."""

    def __init__(self) -> None:
        self._copies: WeakKeyDictionary[nn.Module, _Copy] = WeakKeyDictionary()

    def of(self, weights: Mapping[nn.Module, Sequence[Tensor]]) -> dict[nn.Module, Packed]:
        """Reordered weights: those that are there, made again where they aren't right, and new ones.

        Without the C++ kernels, which compare contents, there are none; without twice the memory for them, none that
        aren't there.

        Args:
            weights: By layer: weights that make one, (out, in), one below the other. In float32 on the CPU, contiguous.

        Mutates: forgets the copies of all other layers.
        """
        library = load_kernels().library
        if library is None:
            return {}
        identities = _identities(fingerprints(library, [w for own in weights.values() for w in own]), weights)
        right = {layer: own for layer, own in self._copies.items() if identities.get(layer) == own.of}
        self._copies = WeakKeyDictionary(right)
        missing = [layer for layer in weights if layer not in right]
        if _fits(weight for layer in missing for weight in weights[layer]):
            # What is made in inference mode is of use in it only.
            with torch.inference_mode(mode=False), torch.no_grad():
                # New memory costs more time than what is written to it.
                room = torch.empty(
                    max((sum(map(Tensor.numel, weights[layer])) for layer in missing), default=0)
                )
                for layer in missing:
                    self._copies[layer] = _Copy(identities[layer], pack(_joined(weights[layer], room)))
        return {layer: own.weight for layer, own in self._copies.items()}

    def clear(self) -> None:
        """Forget all copies."""
        self._copies.clear()

    @property
    def nbytes(self) -> int:
        """What the copies take, but for padding."""
        return sum(own.weight.nbytes for own in self._copies.values())

    def __deepcopy__(self, memo: Any) -> ReorderedWeights:
        return ReorderedWeights()

    def __reduce__(self) -> tuple[type[ReorderedWeights], tuple[()]]:
        return ReorderedWeights, ()


def _identities(
    found: Sequence[int], weights: Mapping[nn.Module, Sequence[Tensor]]
) -> dict[nn.Module, tuple[_Identity, ...]]:
    numbers = iter(found)
    return {layer: tuple((next(numbers), weight.shape) for weight in own) for layer, own in weights.items()}


def _joined(weights: Sequence[Tensor], room: Tensor) -> Tensor:
    """Weights one below the other; several in memory that is there already."""
    if len(weights) == 1:
        return weights[0].detach()
    rows, inputs = sum(len(weight) for weight in weights), weights[0].shape[1]
    return torch.cat([weight.detach() for weight in weights], out=room[: rows * inputs].view(rows, inputs))


def _fits(weights: Iterable[Tensor]) -> bool:
    """Whether copies leave as much memory as they take."""
    needed = sum(weight.nbytes for weight in weights)
    free = free_memory() if needed else None
    return free is None or 2 * needed <= free
