"""What adapters do in a converted graph, and their weights as it reads them.

An adapter has a slot for its factors, in tables of all adapters. Its updates' weights are where the form of the graph
needs them: `own_weights` or `windowed_weights`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manytune.engine.openvino.outline import FactorInput, Outline, UpdateInput
from manytune.methods.tuners.terms import Terms, Update
from manytune.mixed.stacks import Snapshot

#: The largest weight that is a number, also where it is kept in bfloat16.
FINITE = torch.finfo(torch.bfloat16).max

_FIRST_SLOTS = 8
_FACTORS = ("inputs", "outputs", "shift")


@dataclass(frozen=True)
class Division:
    """The tokens of a forward as a graph takes them.

    Attributes:
        count: Number of equal parts that they are given in.
        order: The tokens, part after part.
        inputs: Of the graph: what each token reads.
        tables: Which of the adapters' tensors the graph needs; equal for the same ones.
    """

    count: int
    order: Tensor
    inputs: dict[str, Tensor]
    tables: object


def obstacle(
    terms: Terms,
    layers: frozenset[str],
    embedding: str,
    shared: Collection[str] = (),
    largest: float = FINITE,
) -> str | None:
    """Why a converted graph can't compute an adapter, as a clause; None if it can.

    Args:
        terms: The adapter's.
        layers: Paths of the layers that the graph computes.
        embedding: Path of the table of token embeddings, which torch looks up.
        shared: Layers of the graph that have their input in common with others.
        largest: The largest weight of an update that it may have.
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
        if not all(
            _is_bounded(part, largest) for part in (update.down, update.up * update.scaling, update.down_bias)
        ):
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


class AdapterTables(ABC):
    """The weights of adapters that run.

    Args:
        embedding: Path of the table of token embeddings, which isn't the graph's.

    Attributes:
        largest: The largest weight that an update may have.
        outline: What all adapters so far do.
        version: Changes whenever the adapters do.
    """

    largest = FINITE

    def __init__(self, embedding: str) -> None:
        self._embedding = embedding
        self.outline = Outline()
        self._slots: dict[str, int] = {}
        self._factors: dict[str, Tensor] = {}
        self._room = _FIRST_SLOTS
        self.version = 0

    def __contains__(self, digest: str) -> bool:
        return digest in self._slots

    @abstractmethod
    def divide(
        self, digests: Sequence[str | None], kept: Sequence[int] | None, outline: Outline, *, in_one: bool
    ) -> Division:
        """How a graph takes a forward's tokens.

        Args:
            digests: The adapter of each token; None for the base alone.
            kept: The tokens that the head reads; None for all.
            outline: What the graph computes.
            in_one: Whether the tokens have to stay in their order.
        """

    @abstractmethod
    def tensors(self, tables: object) -> Mapping[str, Tensor]:
        """A graph's inputs by name, as views, for `Division.tables`."""

    def keep(self, digests: set[str]) -> None:
        """Let go of all other adapters."""
        gone = self._slots.keys() - digests
        for digest in gone:
            del self._slots[digest]
            self._let_go(digest)
        self.version += bool(gone)

    def add(self, snapshot: Snapshot) -> None:
        """Copy an adapter's weights."""
        terms = snapshot.terms
        outline = outline_of(terms, self._embedding)
        if not outline <= self.outline:
            self.outline = self.outline | outline
            self._make_factors()
        own = {
            _input(path, one, terms): one for path, one in terms.updates.items() if path != self._embedding
        }
        self._add_updates(snapshot.digest, own)
        slot = next(number for number in range(1, len(self._slots) + 2) if number not in self._slots.values())
        if slot >= self._room:
            self._room *= 2
            self._make_factors()
        for factor in self.outline.factors:
            self._factors[factor.name][slot] = _factor(factor, terms, own)
        self._slots[snapshot.digest] = slot
        self.version += 1

    # -- parts

    @abstractmethod
    def _add_updates(self, digest: str, own: Mapping[UpdateInput, Update]) -> None:
        """Copy an adapter's updates; the outline has them."""

    @abstractmethod
    def _let_go(self, digest: str) -> None:
        """Forget an adapter's updates."""

    def _slots_of(self, digests: Sequence[str | None], kept: Sequence[int] | None) -> dict[str, Tensor]:
        """The slot of each token as inputs of the graph; 0 is that of the base alone."""
        slots = torch.tensor([0 if one is None else self._slots[one] for one in digests], dtype=torch.int32)
        return {"slots": slots, "slots kept": slots if kept is None else slots[list(kept)]}

    def _factor_tensors(self) -> dict[str, Tensor]:
        slots = 1 + max(self._slots.values(), default=0)
        return {factor.name: self._factors[factor.name][:slots] for factor in self.outline.factors}

    def _make_factors(self) -> None:
        """Make room; what is there stays."""
        before, self._factors = self._factors, {}
        for factor in self.outline.factors:
            start = torch.ones if factor.kind in ("inputs", "outputs") else torch.zeros
            self._factors[factor.name] = start(self._room, factor.size)
        for name, tensor in before.items():
            self._factors[name][: len(tensor)] = tensor


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


def _is_bounded(values: Tensor | None, largest: float) -> bool:
    return values is None or bool((values.abs() <= largest).all())
