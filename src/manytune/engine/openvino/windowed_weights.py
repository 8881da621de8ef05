"""Adapters' updates for graphs of products alone: all adapters' weights one below the other, layer by layer.

An adapter has a range of ranks, the same at every layer. Its weights are copied there once, and a step reads the
tensors as they are, up to the last range in use. Ranges are given out from the front, so that few adapters need little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from manytune.engine.openvino.adapter_tables import AdapterTables, Division
from manytune.engine.openvino.outline import Outline, UpdateInput
from manytune.engine.openvino.windows import RANKS, Windows, divide
from manytune.methods.tuners.terms import Update

_FIRST_RANKS = 64


class WindowedWeights(AdapterTables):
    """See `AdapterTables`."""

    #: With weights beyond this, what an adapter makes of another one's token might overflow, and 0 · ∞ isn't 0.
    largest = 1e6

    def __init__(self, embedding: str) -> None:
        super().__init__(embedding)
        self._ranges: dict[str, slice] = {}
        self._tensors: dict[str, Tensor] = {}
        self._ranks = _FIRST_RANKS

    @property
    def ranks(self) -> int:
        """Ranks that a step reads."""
        return max((own.stop for own in self._ranges.values()), default=0) or RANKS

    def divide(
        self, digests: Sequence[str | None], kept: Sequence[int] | None, outline: Outline, *, in_one: bool
    ) -> Division:
        """See `AdapterTables.divide`: in windows, and which ranks each token keeps."""
        ranges = [_NOWHERE if one is None else self._ranges[one] for one in digests]
        # With many tokens of one adapter windows of equal size would be large.
        in_order = Windows(1, self.ranks, tuple(range(len(ranges))))
        windows = in_order if in_one else divide(ranges, self.ranks)
        order = torch.tensor(windows.order)
        ends = torch.tensor([(own.start, own.stop) for own in ranges])[order]
        first, end = (part.view(windows.count, -1, 1) for part in ends.unbind(1))
        rank = torch.arange(windows.count * windows.size).view(windows.count, 1, -1)
        own = (rank >= first) & (rank < end)
        if windows.count == 1:
            slots = {name: one[None] for name, one in self._slots_of(digests, kept).items()}
            of_head = own if kept is None else own[:, list(kept)]
        else:
            all_slots = self._slots_of(digests, None)["slots"][order].view(windows.count, -1)
            slots, of_head = {"slots": all_slots, "slots kept": all_slots}, own
        inputs = {"own": own, "own kept": of_head, **slots}
        return Division(windows.count, order, inputs, (self.version, windows.count, windows.size))

    def tensors(self, tables: object) -> Mapping[str, Tensor]:
        """See `AdapterTables.tensors`."""
        assert isinstance(tables, tuple)
        _, count, size = tables
        found = self._factor_tensors()
        for update in self.outline.updates:
            for part in _parts(update):
                rows = self._tensors[update.name(part)][: count * size]
                found[update.name(part)] = rows.view(count, *((1, size) if part == "bias" else (size, -1)))
        return found

    def _add_updates(self, digest: str, own: Mapping[UpdateInput, Update]) -> None:
        if any(update.name("down") not in self._tensors for update in self.outline.updates):
            self._make()
        ranks = self._free_range(max((one.rank for one in own.values()), default=0))
        for update in self.outline.updates:
            self._fill(ranks, update, own.get(update))
        self._ranges[digest] = ranks

    def _let_go(self, digest: str) -> None:
        del self._ranges[digest]

    def _fill(self, ranks: slice, update: UpdateInput, own: Update | None) -> None:
        parts = [self._tensors[update.name(name)][ranks] for name in _parts(update)]
        for part in parts:
            part.zero_()
        if own is None or not len(parts[0]):
            return
        assert own.down is not None
        parts[0][: own.rank] = own.down.detach()
        torch.mul(own.up.detach().T, own.scaling, out=parts[1][: own.rank])
        if own.down_bias is not None:
            parts[2][: own.rank] = own.down_bias.detach()

    def _free_range(self, rank: int) -> slice:
        """The first free range."""
        count = -(-rank // RANKS) * RANKS
        # So aligned, a range lies in one window of any size that holds it.
        step = 1 << (count - 1).bit_length() if count else 1
        start = 0
        for taken in sorted(self._ranges.values(), key=lambda one: one.start):
            if taken.start - start >= count:
                break
            start = max(start, -(-taken.stop // step) * step)
        if start + count > self._ranks:
            while start + count > self._ranks:
                self._ranks *= 2
            self._make()
        return slice(start, start + count)

    def _make(self) -> None:
        """Make room; what is there stays."""
        before, self._tensors = self._tensors, {}
        for update in self.outline.updates:
            self._tensors[update.name("down")] = torch.zeros(self._ranks, update.inputs)
            self._tensors[update.name("up")] = torch.zeros(self._ranks, update.outputs)
            if update.has_bias:
                self._tensors[update.name("bias")] = torch.zeros(self._ranks)
        for name, tensor in before.items():
            self._tensors[name][: len(tensor)] = tensor


_NOWHERE = slice(0, 0)


def _parts(update: UpdateInput) -> list[str]:
    return ["down", "up", *(["bias"] if update.has_bias else [])]
