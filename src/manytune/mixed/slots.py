"""Adapters by name, and the numbered slots in which those that run have their weights.

A request holds a snapshot: the adapter as it was when the request came. Replacing or removing a name concerns later
requests only. Weights are in a slot while a running request needs them; equal content shares one, whatever its names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from manytune.errors import AdapterError, ConfigError
from manytune.methods.registry import terms_of
from manytune.methods.tuners.base_layers import BaseLayers
from manytune.methods.tuners.targets import adapter_layers
from manytune.methods.tuners.terms import Adapter, Terms
from manytune.mixed.products import Product, Shape, UpdateStack, shape_of
from manytune.mixed.rescaling import FactorStack, Outline, Rescaling, outline_of
from manytune.mixed.selection import select_tokens


@dataclass(frozen=True, eq=False)
class Snapshot:
    """An adapter as a request holds it.

    Attributes:
        id: The hash of its content.
        terms: Its terms.
        shape: Which stack of updates it belongs to, or None.
        outline: Which stack of factors, or None.
    """

    id: str
    terms: Terms
    shape: Shape | None
    outline: Outline | None


@dataclass
class LayerTerms:
    """What adapters do at one layer in the present forward."""

    products: list[Product] = field(default_factory=list)
    rescalings: list[Rescaling] = field(default_factory=list)


class AdapterSlots:
    """The book of adapters over one base.

    Args:
        model: The base.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._device = model.device
        half = model.dtype in (torch.float16, torch.bfloat16)
        # As in training, adapters compute in float32 on a half-precision base, whatever their files hold.
        self._dtype = torch.float32 if half else model.dtype
        self._names: dict[str, Snapshot] = {}
        self._holders: dict[str, int] = {}  # running requests of each content
        self._pairs: dict[Shape, UpdateStack] = {}
        self._factors: dict[Outline, FactorStack] = {}
        self._terms: dict[str, LayerTerms] = {}
        self._chosen: Any = None
        self._carrying = next((path for path, _ in adapter_layers(model)), None)

    # -- names

    @torch.no_grad()
    def register(self, name: str, adapter: Adapter) -> None:
        """Make an adapter known under a name, in place of one that had it.

        Raises:
            ConfigError: It can't run in a mixed batch, or doesn't fit the base.
        """
        if self._carrying is not None:
            raise ConfigError(
                f"adapter {name!r} can't run beside the base: {self._carrying} has adapters attached to it already, "
                "which act on every request. unload() them first, and make a new Engine."
            )
        terms = terms_of(adapter, self._model)
        layers = [BaseLayers(self._model).at(path) for path in terms.factors]
        for layer in layers:
            layer.require_linear()
        where = {layer.path: (layer.inputs, layer.outputs) for layer in layers}
        self._names[name] = Snapshot(
            adapter.id, terms, shape_of(terms, self._dtype), outline_of(terms.factors, where)
        )

    def unregister(self, name: str) -> None:
        """Forget a name.

        Raises:
            AdapterError: It isn't known.
        """
        self.snapshot(name)
        del self._names[name]

    def snapshot(self, name: str) -> Snapshot:
        """The adapter of a name.

        Raises:
            AdapterError: There is none.
        """
        if name not in self._names:
            known = ", ".join(repr(one) for one in list(self._names)[:8]) or "none"
            more = ", ..." if len(self._names) > 8 else ""
            raise AdapterError(f"there is no adapter {name!r} in the engine. Loaded: {known}{more}.")
        return self._names[name]

    @property
    def names(self) -> tuple[str, ...]:
        """The known names."""
        return tuple(self._names)

    # -- slots

    @torch.no_grad()
    def acquire(self, snapshot: Snapshot) -> None:
        """Have an adapter's weights in a slot until it is released as often."""
        count = self._holders.get(snapshot.id, 0)
        self._holders[snapshot.id] = count + 1
        if count:
            return
        self._chosen = None
        if snapshot.shape is not None:
            stack = self._pairs.get(snapshot.shape)
            if stack is None:
                stack = self._pairs[snapshot.shape] = UpdateStack(snapshot.shape, self._device)
            stack.add(snapshot.id, snapshot.terms.updates)
        if snapshot.outline is not None:
            factors = self._factors.get(snapshot.outline)
            if factors is None:
                factors = self._factors[snapshot.outline] = FactorStack(
                    snapshot.outline, self._dtype, self._device
                )
            factors.add(snapshot.id, snapshot.terms.factors)

    def release(self, snapshot: Snapshot) -> None:
        """Take back one `acquire`."""
        self._holders[snapshot.id] -= 1
        if self._holders[snapshot.id]:
            return
        del self._holders[snapshot.id]
        self._chosen = None
        if snapshot.shape is not None:
            stack = self._pairs[snapshot.shape]
            stack.remove(snapshot.id)
            if not len(stack):
                del self._pairs[snapshot.shape]
        if snapshot.outline is not None:
            factors = self._factors[snapshot.outline]
            factors.remove(snapshot.id)
            if not len(factors):
                del self._factors[snapshot.outline]

    @property
    def in_slots(self) -> int:
        """How many adapters have their weights in slots."""
        return len(self._holders)

    @property
    def nbytes(self) -> int:
        """Size of the slots' weights."""
        return sum(stack.nbytes for stack in self._pairs.values())

    # -- a forward

    def choose(
        self, decoding: Sequence[Snapshot | None], stretches: Sequence[tuple[Snapshot | None, slice]]
    ) -> dict[str, LayerTerms]:
        """Set which token of the next forward uses which adapter; all of them have slots.

        Args:
            decoding: The adapter of each token that decodes.
            stretches: Adapters of the stretches of prompts, with their tokens.

        Returns:
            What adapters do, by path of the layer; empty if no token has an adapter with weights.
        """
        chosen = None if stretches else [snapshot and snapshot.id for snapshot in decoding]
        if chosen is not None and chosen == self._chosen:
            return self._terms
        self._chosen = chosen
        self._terms = {}
        for shape, stack in self._pairs.items():
            slots = {
                own: stack.slot(own)
                for own in {s.id for s in (*decoding, *(s for s, _ in stretches)) if s and s.shape == shape}
            }
            stack.selection = select_tokens(
                [slots.get(s.id, -1) if s is not None else -1 for s in decoding],
                [(slots[s.id], rows) for s, rows in stretches if s is not None and s.id in slots],
                device=self._device,
            )
            if stack.selection is not None:
                for path, product in stack.products.items():
                    self._terms.setdefault(path, LayerTerms()).products.append(product)
        for outline, factors in self._factors.items():
            factors.slots = self._factor_slots(outline, factors, decoding, stretches)
            if factors.slots is not None:
                for path, rescaling in factors.rescalings.items():
                    self._terms.setdefault(path, LayerTerms()).rescalings.append(rescaling)
        return self._terms

    def end_forward(self) -> None:
        """Let go of the last forward's activations."""
        for stack in self._pairs.values():
            stack.end_forward()

    def _factor_slots(
        self,
        outline: Outline,
        factors: FactorStack,
        decoding: Sequence[Snapshot | None],
        stretches: Sequence[tuple[Snapshot | None, slice]],
    ) -> Tensor | None:
        def slot(snapshot: Snapshot | None) -> int:
            return factors.slot(snapshot.id) if snapshot is not None and snapshot.outline == outline else 0

        slots = [slot(snapshot) for snapshot in decoding]
        for snapshot, rows in stretches:
            slots.extend([slot(snapshot)] * (rows.stop - rows.start))
        return torch.tensor(slots, device=self._device) if any(slots) else None
