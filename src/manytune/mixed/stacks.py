"""The stacks that hold adapters' weights, and what they do at each layer in a forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from manytune.methods.tuners.terms import Terms, Update
from manytune.mixed.factors import FactorStack, Outline, Rescaling, outline_of
from manytune.mixed.own_updates import OwnUpdate
from manytune.mixed.owners import Owners
from manytune.mixed.parameters import HeldUpdate, ParameterTerms, held, held_bytes
from manytune.mixed.selection import Selection, select_tokens
from manytune.mixed.shapes import Shape, divided
from manytune.mixed.updates import Product, UpdateStack


@dataclass(frozen=True, eq=False)
class Snapshot:
    """An adapter as a request holds it.

    Attributes:
        digest: The hash of its content.
        terms: Its terms.
        updates: Its updates by the stack that they belong to.
        outline: Which stack its factors belong to, or None.
        dtype: In which its terms are computed.
    """

    digest: str
    terms: Terms
    updates: Mapping[Shape, Mapping[str, Update]]
    outline: Outline | None
    dtype: torch.dtype


def snapshot_of(digest: str, terms: Terms, dtype: torch.dtype) -> Snapshot:
    """An adapter, ready for stacks.

    Args:
        digest: The hash of its content, or any name that is its own.
        terms: Its terms.
        dtype: In which its terms are computed.
    """
    return Snapshot(digest, terms, divided(terms, dtype), outline_of(terms.factors, dtype), dtype)


def digest_of(snapshot: Snapshot | None) -> str | None:
    """The digest of a snapshot; None for none."""
    return None if snapshot is None else snapshot.digest


def dtype_for(base: torch.dtype) -> torch.dtype:
    """In which dtype adapters of a base are computed: as in training, float32 on a half-precision base."""
    return torch.float32 if base in (torch.float16, torch.bfloat16) else base


@dataclass
class LayerTerms:
    """What adapters do at one layer in the present forward: at a router or grouped experts `parameters` alone."""

    products: list[Product | OwnUpdate] = field(default_factory=list)
    rescalings: list[Rescaling] = field(default_factory=list)
    parameters: ParameterTerms | None = None


class AdapterStacks:
    """The weights of adapters that run.

    Args:
        device: Where they are.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._holders: dict[str, int] = {}  # how often each adapter was acquired
        self._updates: dict[Shape, UpdateStack] = {}
        self._factors: dict[Outline, FactorStack] = {}
        self._parameters: dict[str, dict[str, HeldUpdate]] = {}  # by adapter and path
        self._terms: dict[str, LayerTerms] = {}
        self._owners: Owners | None = None

    @torch.no_grad()
    def acquire(self, snapshot: Snapshot) -> None:
        """Have an adapter's weights in a slot until it is released as often.

        If this fails, as it does without the memory for it, the adapter isn't held and all others are as before.
        """
        if snapshot.digest not in self._holders:
            try:
                self._hold(snapshot)
            except BaseException:
                self._drop(snapshot)
                raise
        self._holders[snapshot.digest] = self._holders.get(snapshot.digest, 0) + 1

    def needed(self, snapshot: Snapshot) -> int:
        """Memory that `acquire` of an adapter takes, in bytes."""
        if snapshot.digest in self._holders:
            return 0
        total = sum(held_bytes(update, snapshot.dtype) for update in snapshot.terms.parameters.values())
        for shape in snapshot.updates:
            stack = self._updates.get(shape)
            total += shape.slot_bytes if stack is None else stack.next_bytes
        if snapshot.outline is not None:
            factors = self._factors.get(snapshot.outline)
            total += 2 * snapshot.outline.slot_bytes if factors is None else factors.next_bytes
        return total

    def _hold(self, snapshot: Snapshot) -> None:
        self._owners = None
        for shape, updates in snapshot.updates.items():
            stack = self._updates.get(shape)
            if stack is None:
                stack = self._updates[shape] = UpdateStack(shape, self.device)
            stack.add(snapshot.digest, updates)
        if snapshot.outline is not None:
            factors = self._factors.get(snapshot.outline)
            if factors is None:
                factors = self._factors[snapshot.outline] = FactorStack(snapshot.outline, self.device)
            factors.add(snapshot.digest, snapshot.terms.factors)
        if snapshot.terms.parameters:
            self._parameters[snapshot.digest] = {
                path: held(update, self.device, snapshot.dtype)
                for path, update in snapshot.terms.parameters.items()
            }

    def release(self, snapshot: Snapshot) -> None:
        """Take back one `acquire`."""
        self._holders[snapshot.digest] -= 1
        if self._holders[snapshot.digest]:
            return
        del self._holders[snapshot.digest]
        self._drop(snapshot)

    def _drop(self, snapshot: Snapshot) -> None:
        """Free an adapter's slots, as many as it has."""
        self._owners = None
        for shape in snapshot.updates:
            stack = self._updates.get(shape)
            if stack is not None and snapshot.digest in stack:
                stack.remove(snapshot.digest)
            if stack is not None and not len(stack):
                del self._updates[shape]
        if snapshot.outline is not None:
            factors = self._factors.get(snapshot.outline)
            if factors is not None and snapshot.digest in factors:
                factors.remove(snapshot.digest)
            if factors is not None and not len(factors):
                del self._factors[snapshot.outline]
        self._parameters.pop(snapshot.digest, None)

    def restart(self, snapshots: Sequence[Snapshot]) -> None:
        """Hold these adapters and no others, in the memory of those before where it suits."""
        self._holders, self._owners, self._parameters = {}, None, {}
        for stack in self._updates.values():
            stack.clear()
        for factors in self._factors.values():
            factors.clear()
        for snapshot in snapshots:
            self.acquire(snapshot)
        self._updates = {shape: stack for shape, stack in self._updates.items() if len(stack)}
        self._factors = {outline: stack for outline, stack in self._factors.items() if len(stack)}

    @property
    def held(self) -> int:
        """How many adapters have their weights in slots."""
        return len(self._holders)

    @property
    def digests(self) -> set[str]:
        """Those that have."""
        return set(self._holders)

    @property
    def nbytes(self) -> int:
        """Size of the slots' weights; what experts' and routers' updates share with the adapters isn't in it."""
        updates = sum(stack.nbytes for stack in self._updates.values())
        factors = sum(stack.nbytes for stack in self._factors.values())
        parameters = sum(one.nbytes for own in self._parameters.values() for one in own.values())
        return updates + factors + parameters

    # -- a forward

    def choose(self, owners: Owners) -> Mapping[str, LayerTerms]:
        """Set which token of the next forward uses which adapter; all of them were acquired.

        Args:
            owners: The adapter of each token.

        Returns:
            What adapters do, by path of the layer; empty if no token has an adapter with weights. The same object as
            before if the owners are.
        """
        if self._owners is not None and not owners.chunks and _same(self._owners, owners):
            return self._terms
        self._owners = owners
        self._terms = {}
        digests = owners.digests
        for stack in self._updates.values():
            present = {digest: stack.slot(digest) for digest in digests if digest in stack}
            stack.selection = _no_rows
            if present:
                stack.complete()
                stack.selection = cache(_selections(owners, present, self.device))
                for path, product in stack.products.items():
                    self._terms.setdefault(path, LayerTerms()).products.append(product)
        for factors in self._factors.values():
            present = {digest: factors.slot(digest) for digest in digests if digest in factors}
            factors.slots = _no_rows
            if present:
                factors.slots = cache(_slots(owners, present, self.device))
                for path, rescaling in factors.rescalings.items():
                    self._terms.setdefault(path, LayerTerms()).rescalings.append(rescaling)
        for path, parameters in self._parameter_terms(owners, digests).items():
            self._terms.setdefault(path, LayerTerms()).parameters = parameters
        return self._terms

    def _parameter_terms(self, owners: Owners, digests: set[str]) -> dict[str, ParameterTerms]:
        """What the forward's adapters do to parameters, by path of the layer."""
        present = {
            digest: slot for slot, digest in enumerate(sorted(digests & self._parameters.keys()), start=1)
        }
        slots = cache(_slots(owners, present, self.device))
        updates: dict[str, dict[int, dict[str, HeldUpdate]]] = {}
        for digest, slot in present.items():
            for path, update in self._parameters[digest].items():
                layer, _, name = path.rpartition(".")
                updates.setdefault(layer, {}).setdefault(slot, {})[name] = update
        return {layer: ParameterTerms(own, slots) for layer, own in updates.items()}

    def end_forward(self) -> None:
        """Let go of the last forward's activations."""
        for stack in self._updates.values():
            stack.end_forward()


def _same(one: Owners, other: Owners) -> bool:
    return one.single == other.single and one.chunks == other.chunks and one.kept == other.kept


def _no_rows(rows: int) -> None:
    return None


def _selections(
    owners: Owners, present: Mapping[str, int], device: torch.device
) -> Callable[[int], Selection | None]:
    def find(rows: int) -> Selection | None:
        single, chunks = owners.of(rows)
        return select_tokens(
            [-1 if digest is None else present.get(digest, -1) for digest in single],
            [
                (present[digest], where)
                for digest, where in chunks
                if digest is not None and digest in present
            ],
            device=device,
        )

    return find


def _slots(
    owners: Owners, present: Mapping[str, int], device: torch.device
) -> Callable[[int], Tensor | None]:
    def slots_of(digests: Sequence[str | None]) -> list[int]:
        return [0 if digest is None else present.get(digest, 0) for digest in digests]

    def find(rows: int) -> Tensor | None:
        single, chunks = owners.of(rows)
        slots = slots_of(single)
        for digest, where in chunks:
            slots.extend(slots_of([digest]) * (where.stop - where.start))
        return torch.tensor(slots, device=device) if any(slots) else None

    return find
