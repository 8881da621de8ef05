"""Adapters' weights as the converted graph reads them: of all adapters one below the other, layer by layer.

An adapter has a range of ranks, the same at every layer, and a slot for its factors. Its weights are copied there once,
and a step reads the tensors as they are, up to the last range in use. Ranges are given out from the front, so that few
adapters need little.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from manytune.engine.openvino.graph import FactorInput, Outline, UpdateInput
from manytune.engine.openvino.windows import RANKS
from manytune.methods.tuners.terms import Terms, Update
from manytune.mixed.stacks import Snapshot

_FIRST_RANKS = 64
_FIRST_SLOTS = 8
#: With weights beyond this, what an adapter makes of another one's token might overflow, and 0 · ∞ isn't 0.
_LARGEST = 1e6
_FACTORS = ("inputs", "outputs", "shift")


@dataclass(frozen=True)
class Place:
    """Where an adapter is.

    Attributes:
        ranks: Its range of ranks; empty if it has no updates.
        slot: Its slot; 0 is that of tokens without an adapter.
    """

    ranks: slice
    slot: int


def obstacle(
    terms: Terms, layers: frozenset[str], embedding: str, shared: Collection[str] = ()
) -> str | None:
    """Why a converted graph can't compute an adapter, as a clause; None if it can.

    Args:
        terms: The adapter's.
        layers: Paths of the layers that the graph computes.
        embedding: Path of the table of token embeddings, which torch looks up.
        shared: Layers of the graph that have their input in common with others.
    """
    if terms.parameters:
        return "it acts on a router or on experts"
    for path, update in terms.updates.items():
        if path == embedding:
            continue
        if update.down is None or update.lookup:
            return f"{path} is trained in full" if update.down is None else f"{path} is a table"
        if {path, update.source or path} - layers:
            return f"{path} isn't a linear layer or a norm"
        if not all(_is_bounded(part) for part in (update.down, update.up * update.scaling, update.down_bias)):
            return f"{path} has weights that are NaN, Inf or very large"
    scaled = next((p for p, own in terms.factors.items() if p in shared and own.inputs is not None), None)
    if scaled is not None:
        return f"it scales the inputs of {scaled}, which is computed together with other layers"
    unknown = terms.factors.keys() - layers - {embedding}
    return f"{next(iter(unknown))} isn't a linear layer or a norm" if unknown else None


def outline_of(terms: Terms, embedding: str) -> Outline:
    """What an adapter does in a graph, the table of token embeddings left out."""
    updates = {_input(path, one, terms): one for path, one in terms.updates.items() if path != embedding}
    factors = {
        FactorInput(path, kind, len(value))
        for path, own in terms.factors.items()
        if path != embedding
        for kind in _FACTORS
        if (value := getattr(own, kind)) is not None
    }
    factors |= {FactorInput(i.path, "added", i.outputs) for i, u in updates.items() if u.up_bias is not None}
    return Outline(frozenset(updates), frozenset(factors))


class AdapterTables:
    """The weights of adapters that run.

    Args:
        embedding: Path of the table of token embeddings, which isn't the graph's.
    """

    def __init__(self, embedding: str) -> None:
        self._embedding = embedding
        self.outline = Outline()
        self._places: dict[str, Place] = {}
        self._tensors: dict[str, Tensor] = {}
        self._ranks, self._slots = _FIRST_RANKS, _FIRST_SLOTS
        #: Changes whenever `tensors` does.
        self.version = 0

    def __contains__(self, digest: str) -> bool:
        return digest in self._places

    def place(self, digest: str | None) -> Place:
        """Where an adapter is; None is the base alone."""
        return _NOWHERE if digest is None else self._places[digest]

    @property
    def ranks(self) -> int:
        """Ranks that a step reads."""
        return max((place.ranks.stop for place in self._places.values()), default=0) or RANKS

    def tensors(self, count: int, size: int) -> Mapping[str, Tensor]:
        """The graph's inputs by name, as views.

        Args:
            count: Number of windows.
            size: Ranks of each.
        """
        slots = 1 + max((place.slot for place in self._places.values()), default=0)
        found = {factor.name: self._tensors[factor.name][:slots] for factor in self.outline.factors}
        for update in self.outline.updates:
            for part in ("down", "up", *(["bias"] if update.has_bias else [])):
                rows = self._tensors[update.name(part)][: count * size]
                found[update.name(part)] = rows.view(count, *((1, size) if part == "bias" else (size, -1)))
        return found

    def keep(self, digests: set[str]) -> None:
        """Let go of all other adapters."""
        gone = self._places.keys() - digests
        for digest in gone:
            del self._places[digest]
        self.version += bool(gone)

    def add(self, snapshot: Snapshot) -> None:
        """Copy an adapter's weights."""
        terms = snapshot.terms
        self._widen(outline_of(terms, self._embedding))
        own = {
            _input(path, one, terms): one for path, one in terms.updates.items() if path != self._embedding
        }
        place = self._free_place(max((one.rank for one in own.values()), default=0))
        for update in self.outline.updates:
            self._fill_update(place.ranks, update, own.get(update))
        for factor in self.outline.factors:
            self._tensors[factor.name][place.slot] = _factor(factor, terms, own)
        self._places[snapshot.digest] = place
        self.version += 1

    # -- parts

    def _fill_update(self, ranks: slice, update: UpdateInput, own: Update | None) -> None:
        names = ["down", "up", *(["bias"] if update.has_bias else [])]
        parts = [self._tensors[update.name(name)][ranks] for name in names]
        for part in parts:
            part.zero_()
        if own is None or not len(parts[0]):
            return
        assert own.down is not None
        parts[0][: own.rank] = own.down.detach()
        torch.mul(own.up.detach().T, own.scaling, out=parts[1][: own.rank])
        if own.down_bias is not None:
            parts[2][: own.rank] = own.down_bias.detach()

    def _free_place(self, rank: int) -> Place:
        """The first free range and slot."""
        count = -(-rank // RANKS) * RANKS
        # So aligned, a range lies in one window of any size that holds it.
        step = 1 << (count - 1).bit_length() if count else 1
        start = 0
        for taken in sorted((place.ranks for place in self._places.values()), key=lambda one: one.start):
            if taken.start - start >= count:
                break
            start = max(start, -(-taken.stop // step) * step)
        slots = {place.slot for place in self._places.values()}
        slot = next(number for number in range(1, len(slots) + 2) if number not in slots)
        while start + count > self._ranks or slot >= self._slots:
            self._ranks *= 1 + (start + count > self._ranks)
            self._slots *= 1 + (slot >= self._slots)
            self._make(self.outline)
        return Place(slice(start, start + count), slot)

    def _widen(self, outline: Outline) -> None:
        if not outline <= self.outline:
            self.outline = self.outline | outline
            self._make(self.outline)

    def _make(self, outline: Outline) -> None:
        """Make room; what is there stays."""
        before, self._tensors = self._tensors, {}
        for update in outline.updates:
            self._tensors[update.name("down")] = torch.zeros(self._ranks, update.inputs)
            self._tensors[update.name("up")] = torch.zeros(self._ranks, update.outputs)
            if update.has_bias:
                self._tensors[update.name("bias")] = torch.zeros(self._ranks)
        for factor in outline.factors:
            start = torch.ones if factor.kind in ("inputs", "outputs") else torch.zeros
            self._tensors[factor.name] = start(self._slots, factor.size)
        for name, tensor in before.items():
            self._tensors[name][: len(tensor)] = tensor


_NOWHERE = Place(slice(0, 0), 0)


def _input(path: str, update: Update, terms: Terms) -> UpdateInput:
    return UpdateInput(
        path,
        terms.activation or "",
        terms.reads_output,
        update.source or "",
        update.down_bias is not None,
        update.inputs,
        update.outputs,
    )


def _factor(factor: FactorInput, terms: Terms, own: Mapping[UpdateInput, Update]) -> Tensor | float:
    if factor.kind == "added":
        of_layer = [u for i, u in own.items() if i.path == factor.path and u.up_bias is not None]
        return sum(u.up_bias.detach() * u.scaling for u in of_layer if u.up_bias is not None)
    factors = terms.factors.get(factor.path)
    value: Tensor | None = None if factors is None else getattr(factors, factor.kind)
    neutral = 0.0 if factor.kind == "shift" else 1.0
    return neutral if value is None else value.detach()


def _is_bounded(values: Tensor | None) -> bool:
    return values is None or bool((values.abs() <= _LARGEST).all())
