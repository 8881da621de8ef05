"""Factors of many adapters on a layer's inputs and outputs: a, c and d for each token's own adapter.

Slot 0 is for tokens without factors; it holds ones and zeros. Semantics: for each token, its own adapter's formula.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from manytune.methods.tuners.terms import Factors
from manytune.mixed.layer_groups import LayerGroup, group_of, path_of

#: Which of a layer's factors there are: a, c, d.
_NAMES = ("inputs", "outputs", "shift")


@dataclass(frozen=True)
class Outline:
    """What adapters of one stack have in common.

    Attributes:
        groups: Groups of layers, the numbers of their blocks, and which factors they have.
        dtype: Of the factors.
    """

    groups: tuple[tuple[LayerGroup, tuple[int, ...], tuple[str, ...]], ...]
    dtype: torch.dtype

    @property
    def slot_bytes(self) -> int:
        """Size of one adapter's factors."""
        return self.dtype.itemsize * sum(
            len(blocks) * (group.inputs if name == "inputs" else group.outputs)
            for group, blocks, names in self.groups
            for name in names
        )


def outline_of(factors: Mapping[str, Factors], dtype: torch.dtype) -> Outline | None:
    """The outline of one adapter's factors, by path; None if it has none."""
    found: dict[LayerGroup, tuple[list[int], set[str]]] = {}
    for path, own in factors.items():
        outputs = own.outputs if own.outputs is not None else own.shift
        sizes = (0 if values is None else values.shape[0] for values in (own.inputs, outputs))
        group, block = group_of(path, *sizes)
        blocks, names = found.setdefault(group, ([], set()))
        blocks.append(block)
        names.update(name for name in _NAMES if getattr(own, name) is not None)
    groups = (
        (group, tuple(sorted(found[group][0])), tuple(sorted(found[group][1]))) for group in sorted(found)
    )
    return Outline(tuple(groups), dtype) if found else None


@dataclass
class Rescaling:
    """One layer of a stack: its factors, `(slots, size)` each, or None."""

    stack: FactorStack
    inputs: Tensor | None
    outputs: Tensor | None
    shift: Tensor | None

    def before(self, x: Tensor) -> Tensor:
        """A ⊙ x for each token, (..., in)."""
        if self.inputs is None:
            return x
        rows = x.reshape(-1, x.shape[-1])
        slots = self.stack.slots(rows.shape[0])
        if slots is None:
            return x
        return (rows * self.inputs.index_select(0, slots)).to(x.dtype).view(x.shape)

    def after(self, y: Tensor) -> None:
        """C ⊙ y + d for each token in place, (tokens, out)."""
        if self.outputs is None and self.shift is None:
            return
        slots = self.stack.slots(y.shape[0])
        if slots is None:
            return
        dtype = self.stack.outline.dtype
        wide = y if y.dtype == dtype else y.to(dtype)
        if self.outputs is not None:
            wide *= self.outputs.index_select(0, slots)
        if self.shift is not None:
            wide += self.shift.index_select(0, slots)
        if wide is not y:
            y.copy_(wide)


class FactorStack:
    """The factors of adapters that have them at the same layers.

    Args:
        outline: What they have in common.
        device: Where they are.
    """

    def __init__(self, outline: Outline, device: torch.device) -> None:
        self.outline = outline
        #: The slot of each row, `(rows,)`, for a number of rows in the present forward; None if none has one.
        self.slots: Callable[[int], Tensor | None] = lambda rows: None
        self._device = device
        self._members: list[str] = []
        self._tensors: dict[tuple[LayerGroup, str], Tensor] = {}
        self.rescalings: dict[str, Rescaling] = {}
        self._grow(2)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, adapter: str) -> bool:
        return adapter in self._members

    def slot(self, adapter: str) -> int:
        """The place of an adapter; from 1."""
        return self._members.index(adapter) + 1

    def add(self, adapter: str, factors: Mapping[str, Factors]) -> None:
        """Copy an adapter's factors behind the others.

        Mutates: the tensors are made again if there is no room; `rescalings` then changes.
        """
        if len(self._members) + 1 == self._capacity:
            self._grow(2 * self._capacity)
        self._members.append(adapter)
        slot = len(self._members)
        for group, blocks, names in self.outline.groups:
            for name in names:
                # An adapter may lack a factor at some of its layers.
                tensor = self._tensors[group, name]
                tensor[slot] = tensor[0]
                for place, block in enumerate(blocks):
                    value = getattr(factors[path_of(group, block)], name)
                    if value is not None:
                        tensor[slot, place] = value.detach()

    def remove(self, adapter: str) -> None:
        """Forget an adapter; the last takes its place."""
        slot, last = self.slot(adapter), len(self._members)
        if slot != last:
            for tensor in self._tensors.values():
                tensor[slot] = tensor[last]
            self._members[slot - 1] = self._members[-1]
        self._members.pop()

    def clear(self) -> None:
        """Forget all adapters; the memory stays."""
        self._members = []

    @property
    def next_bytes(self) -> int:
        """Memory that adding an adapter takes beforehand."""
        return 2 * self.nbytes if len(self._members) + 1 == self._capacity else 0

    @property
    def nbytes(self) -> int:
        """Size of the factors, free room included."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors.values())

    def _grow(self, capacity: int) -> None:
        """Make room for so many. If there is no memory for it, what is there stays as it was."""
        tensors: dict[tuple[LayerGroup, str], Tensor] = {}
        for group, blocks, names in self.outline.groups:
            for name in names:
                size = group.inputs if name == "inputs" else group.outputs
                start = torch.zeros if name == "shift" else torch.ones
                tensors[group, name] = start(
                    (capacity, len(blocks), size), dtype=self.outline.dtype, device=self._device
                )
        for key, tensor in self._tensors.items():
            tensors[key][: tensor.shape[0]] = tensor
        self._capacity, self._tensors = capacity, tensors
        self.rescalings = {
            path_of(group, block): Rescaling(
                self,
                *(self._tensors[group, name][:, place] if name in names else None for name in _NAMES),
            )
            for group, blocks, names in self.outline.groups
            for place, block in enumerate(blocks)
        }
