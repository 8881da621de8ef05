"""Which adapters share a stack: those whose updates have one shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from manytune.methods.tuners.terms import Terms, Update
from manytune.mixed.layer_groups import LayerGroup, group_of, with_same_input
from manytune.mixed.slot_rank import slot_rank


@dataclass(frozen=True)
class Shape:
    """What adapters of one stack have in common.

    Attributes:
        groups: The groups of layers with the numbers of their blocks.
        rank: The rank that they are filled up to.
        whole: Whether D is the identity, so that U are whole weights.
        lookup: Whether the layers are embedding tables, so that z are ids.
        down_bias: Whether there are biases e.
        up_bias: Whether there are biases f.
        activation: Name of φ; None for the identity.
        reads_output: Whether z is the layer's own output.
        sources: For each group, the path of the group whose input is z, or None for its own.
        dtype: Of the weights.
    """

    groups: tuple[tuple[LayerGroup, tuple[int, ...]], ...]
    rank: int
    whole: bool
    lookup: bool
    down_bias: bool
    up_bias: bool
    activation: str | None
    reads_output: bool
    sources: tuple[str | None, ...]
    dtype: torch.dtype

    @property
    def shared(self) -> bool:
        """Whether layers with the same input share a product; not if they read something of their own."""
        return not (self.whole or self.lookup or self.reads_output or any(self.sources))

    @property
    def slot_bytes(self) -> int:
        """Size of one adapter's weights in a stack: every layer has the largest rank, rounded up."""
        numbers = 0
        for group, blocks in self.groups:
            down = 0 if self.whole else self.rank * (group.inputs + self.down_bias)
            numbers += len(blocks) * (down + group.outputs * (self.rank + self.up_bias))
        return numbers * self.dtype.itemsize

    @property
    def bytes_for_token(self) -> int:
        """Size of what a step computes for a token between D and U, at the layers where that is most."""
        if self.whole:
            return 0
        families = with_same_input([group for group, _ in self.groups]) if self.shared else [()]
        widest = max(1, *map(len, families)) * self.rank
        return widest * self.dtype.itemsize * (1 if self.activation is None else 2)


def divided(terms: Terms, dtype: torch.dtype) -> dict[Shape, Mapping[str, Update]]:
    """An adapter's updates by the stack that they belong to: whole weights and look-ups have one of their own.

    Args:
        terms: The adapter.
        dtype: In which its products are computed.
    """
    parts: dict[tuple[object, ...], dict[str, Update]] = {}
    for path, update in terms.updates.items():
        whole = update.down is None
        # Whole weights of unlike sizes don't share a stack, since they aren't filled up.
        key = (whole, update.lookup, update.rank if whole else 0)
        parts.setdefault(key, {})[path] = update
    return {_shape(updates, terms, dtype): updates for updates in parts.values()}


def _shape(updates: Mapping[str, Update], terms: Terms, dtype: torch.dtype) -> Shape:
    blocks: dict[LayerGroup, list[int]] = {}
    sources: dict[LayerGroup, str | None] = {}
    for path, update in updates.items():
        group, block = group_of(path, update.inputs, update.outputs)
        blocks.setdefault(group, []).append(block)
        sources[group] = None if update.source is None else group_of(update.source, 0, 0)[0].path
    first = next(iter(updates.values()))
    rank = max(update.rank for update in updates.values())
    return Shape(
        groups=tuple((group, tuple(sorted(blocks[group]))) for group in sorted(blocks)),
        rank=rank if first.down is None else slot_rank(rank),
        whole=first.down is None,
        lookup=first.lookup,
        down_bias=any(update.down_bias is not None for update in updates.values()),
        up_bias=any(update.up_bias is not None for update in updates.values()),
        activation=terms.activation,
        reads_output=terms.reads_output,
        sources=tuple(sources[group] for group in sorted(blocks)),
        dtype=dtype,
    )
