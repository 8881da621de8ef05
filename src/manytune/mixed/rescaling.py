"""Factors of many adapters on a layer's inputs and outputs: a, c and d for each token's own adapter.

Slot 0 is for tokens without factors; it holds ones and zeros. Semantics: for each token, its own adapter's formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from manytune.methods.tuners.terms import Factors
from manytune.mixed.layer_groups import Kind, kind_of, path_of

#: Which of a layer's factors there are: inputs, outputs, shift.
_NAMES = ("inputs", "outputs", "shift")
Outline = tuple[tuple[Kind, tuple[int, ...], tuple[str, ...]], ...]


def outline_of(factors: Mapping[str, Factors], sizes: Mapping[str, tuple[int, int]]) -> Outline | None:
    """What adapters of one stack have in common: kinds of layers, their blocks, and which factors they have.

    Args:
        factors: One adapter's, by path.
        sizes: Numbers of inputs and outputs of the layers.
    """
    found: dict[Kind, tuple[list[int], set[str]]] = {}
    for path, own in factors.items():
        kind, block = kind_of(path, *sizes[path])
        blocks, names = found.setdefault(kind, ([], set()))
        blocks.append(block)
        names.update(name for name in _NAMES if getattr(own, name) is not None)
    if not found:
        return None
    return tuple(
        (kind, tuple(sorted(found[kind][0])), tuple(sorted(found[kind][1]))) for kind in sorted(found)
    )


@dataclass
class Rescaling:
    """One layer of a stack: its factors, `(slots, size)` each, or None."""

    stack: FactorStack
    inputs: Tensor | None
    outputs: Tensor | None
    shift: Tensor | None

    def before(self, x: Tensor) -> Tensor:
        """A ⊙ x for each token, (1, T, in)."""
        if self.inputs is None:
            return x
        assert self.stack.slots is not None
        return (x * self.inputs.index_select(0, self.stack.slots)).to(x.dtype)

    def after(self, y: Tensor) -> None:
        """C ⊙ y + d for each token in place, (1, T, out)."""
        slots = self.stack.slots
        assert slots is not None
        if self.outputs is None:
            return
        wide = y[0] if y.dtype == self.outputs.dtype else y[0].to(self.outputs.dtype)
        wide *= self.outputs.index_select(0, slots)
        if self.shift is not None:
            wide += self.shift.index_select(0, slots)
        if wide.dtype != y.dtype:
            y[0].copy_(wide)


class FactorStack:
    """The factors of adapters that have them at the same layers.

    Args:
        outline: What they have in common.
        dtype: Of the factors.
        device: Where they are.

    Attributes:
        slots: The slot of each token in the present forward, `(T,)`; None if no token has one.
    """

    def __init__(self, outline: Outline, dtype: torch.dtype, device: torch.device) -> None:
        self.outline = outline
        self.dtype = dtype
        self.slots: Tensor | None = None
        self._device = device
        self._members: list[str] = []
        self._tensors: dict[tuple[Kind, str], Tensor] = {}
        self.rescalings: dict[str, Rescaling] = {}
        self._grow(2)

    def __len__(self) -> int:
        return len(self._members)

    def slot(self, adapter: str) -> int:
        """The place of an adapter; from 1."""
        return self._members.index(adapter) + 1

    def add(self, adapter: str, factors: Mapping[str, Factors]) -> None:
        """Copy an adapter's factors behind the others.

        Mutates: the tensors are made anew if there is no room; `rescalings` then changes.
        """
        if len(self._members) + 1 == self._capacity:
            self._grow(2 * self._capacity)
        self._members.append(adapter)
        slot = len(self._members)
        for kind, blocks, names in self.outline:
            for name in names:
                # An adapter may lack a factor at some of its layers.
                tensor = self._tensors[kind, name]
                tensor[slot] = tensor[0]
                for place, block in enumerate(blocks):
                    value = getattr(factors[path_of(kind, block)], name)
                    if value is not None:
                        tensor[slot, place] = value

    def remove(self, adapter: str) -> None:
        """Forget an adapter; the last takes its place."""
        slot, last = self.slot(adapter), len(self._members)
        if slot != last:
            for tensor in self._tensors.values():
                tensor[slot] = tensor[last]
            self._members[slot - 1] = self._members[-1]
        self._members.pop()

    def _grow(self, capacity: int) -> None:
        self._capacity = capacity
        old, self._tensors = self._tensors, {}
        for kind, blocks, names in self.outline:
            for name in names:
                size = kind.inputs if name == "inputs" else kind.outputs
                start = torch.zeros if name == "shift" else torch.ones
                self._tensors[kind, name] = start(
                    (capacity, len(blocks), size), dtype=self.dtype, device=self._device
                )
        for key, tensor in old.items():
            self._tensors[key][: tensor.shape[0]] = tensor
        self.rescalings = {
            path_of(kind, block): Rescaling(
                self,
                *(
                    self._tensors[kind, name][:, place] if name in names else None
                    for name in ("inputs", "outputs", "shift")
                ),
            )
            for kind, blocks, names in self.outline
            for place, block in enumerate(blocks)
        }
