"""Adapters by name over one base, each as a snapshot.

A request holds a snapshot: the adapter as it was when the request came. Replacing or removing a name concerns later
requests only. Weights are in a slot while a running request needs them; equal content shares one, whatever its names.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from manytune.errors import AdapterError, ConfigError
from manytune.free_memory import require_memory
from manytune.methods.registry import terms_of
from manytune.methods.tuners.position_layers import check_positions
from manytune.methods.tuners.targets import adapter_layers
from manytune.methods.tuners.terms import Adapter, Terms
from manytune.mixed.memory_estimate import AdapterLimit
from manytune.mixed.stacks import AdapterStacks, Snapshot, dtype_for, snapshot_of


class AdapterSlots(AdapterStacks):
    """The book of adapters over one base.

    Args:
        model: The base.
        limit: What one adapter may take; None for no limit.
    """

    def __init__(self, model: PreTrainedModel, limit: AdapterLimit | None = None) -> None:
        super().__init__(model.device)
        self._limit = limit
        self._model: nn.Module = model
        self._has_encoder = bool(model.config.is_encoder_decoder)
        self._dtype = dtype_for(model.dtype)
        self._names: dict[str, Snapshot] = {}
        self._carrying = next((path for path, _ in adapter_layers(model)), None)

    @torch.no_grad()
    def register(self, name: str, adapter: Adapter, terms: Terms | None = None) -> None:
        """Make an adapter known under a name, in place of one that had it.

        Args:
            name: The name.
            adapter: The adapter.
            terms: Its terms for this base, if they have been computed already.

        Raises:
            ConfigError: It can't run in a mixed batch, or doesn't fit the base.
            OversizedAdapterError: It would take more than one adapter may.
        """
        if self._carrying is not None:
            raise ConfigError(
                f"adapter {name!r} can't run on this base: {self._carrying} has adapters attached to it already, "
                "which act on every request. unload() them first, and make a new Engine."
            )
        terms = terms_of(adapter, self._model) if terms is None else terms
        if self._has_encoder:
            check_positions(terms)
        if self._limit is not None:
            self._limit.check(terms, self._dtype)
        self._names[name] = snapshot_of(adapter.digest, terms, self._dtype)

    def acquire(self, snapshot: Snapshot) -> None:
        """See `AdapterStacks.acquire`; on a CPU it is refused before there is too little memory left.

        Raises:
            ShortMemoryError: There isn't enough memory for its weights now.
        """
        needed = self.needed(snapshot) if self.device.type == "cpu" else 0
        if needed:
            require_memory(needed, "an adapter that is to run")
        super().acquire(snapshot)

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
