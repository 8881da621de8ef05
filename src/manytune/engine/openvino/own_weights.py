"""Adapters' updates for graphs with the operation in C++ (see `native`): each adapter's in memory of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from manytune.engine.openvino.adapter_tables import AdapterTables, Division
from manytune.engine.openvino.native import NOTHING, Weights, plan_of
from manytune.engine.openvino.outline import Outline, UpdateInput
from manytune.methods.tuners.terms import Update

#: Each matrix begins at a multiple of so many numbers: at a line of a processor's cache.
_LINE = 32


class OwnWeights(AdapterTables):
    """See `AdapterTables`.

    Args:
        embedding: See there.
        dtype: What matrices are kept in: float32, or bfloat16, which a step reads in half the time.
    """

    def __init__(self, embedding: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(embedding)
        self._dtype = dtype
        self._weights: dict[str, dict[UpdateInput, Weights]] = {}
        #: By graph and adapter, where the weights of each of the graph's updates are.
        self._entries: dict[tuple[Outline, str | None], np.ndarray] = {}

    def divide(
        self, digests: Sequence[str | None], kept: Sequence[int] | None, outline: Outline, *, in_one: bool
    ) -> Division:
        """See `AdapterTables.divide`: in one part, with a plan of which weights each token reads."""
        slots = {name: one[None] for name, one in self._slots_of(digests, kept).items()}
        inputs = {"plan": self._plan(digests, outline), **slots}
        inputs["plan kept"] = (
            inputs["plan"] if kept is None else self._plan([digests[one] for one in kept], outline)
        )
        return Division(1, torch.arange(len(digests)), inputs, self.version)

    def tensors(self, tables: object) -> Mapping[str, Tensor]:
        """See `AdapterTables.tensors`: the factors; a plan says where the updates are."""
        return self._factor_tensors()

    def _plan(self, digests: Sequence[str | None], outline: Outline) -> Tensor:
        adapters = list(dict.fromkeys(digests))
        places = {digest: place for place, digest in enumerate(adapters)}
        weights = np.stack([self._entries_of(one, outline) for one in adapters], axis=1)
        return plan_of([places[one] for one in digests], weights, self._dtype)

    def _entries_of(self, digest: str | None, outline: Outline) -> np.ndarray:
        """`Weights.entry` of an adapter's updates in the order of the graph's, (updates, 4)."""
        key = outline, digest
        if key not in self._entries:
            own = {} if digest is None else self._weights[digest]
            found = [own[one].entry if one in own else NOTHING for one in outline.ordered]
            self._entries[key] = np.array(found, dtype=np.int64).reshape(-1, len(NOTHING))
        return self._entries[key]

    def _add_updates(self, digest: str, own: Mapping[UpdateInput, Update]) -> None:
        sizes = {update: [one.rank * update.inputs, one.rank * update.outputs] for update, one in own.items()}
        room = sum(_rounded(size) for both in sizes.values() for size in both)
        # In one piece, as a step reads it from the front to the back.
        memory, at = torch.empty(room, dtype=self._dtype), 0
        found: dict[UpdateInput, Weights] = {}
        for update in sorted(own):
            one = own[update]
            parts = []
            for size in sizes[update]:
                parts.append(memory[at : at + size].view(one.rank, -1))
                at += _rounded(size)
            down, up = parts
            assert one.down is not None
            down.copy_(one.down.detach())
            up.copy_(one.up.detach().float().T * one.scaling)
            bias = None if one.down_bias is None else one.down_bias.detach().float().contiguous()
            found[update] = Weights(down, up, bias)
        self._weights[digest] = found

    def _let_go(self, digest: str) -> None:
        del self._weights[digest]
        self._entries = {key: one for key, one in self._entries.items() if key[1] != digest}


def _rounded(size: int) -> int:
    return -(-size // _LINE) * _LINE
