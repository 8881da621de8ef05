"""What the server needs of an engine, whether it generates text or computes embeddings."""

from __future__ import annotations

from typing import Protocol

from manytune.engine.counters import Counters
from manytune.engine.request import Output, Request
from manytune.methods.tuners.terms import Adapter, Terms


class AnyEngine(Protocol):
    """The methods of `Engine` and `EncoderEngine` that the server calls; `Engine` describes them."""

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the registered adapters."""

    def add_adapter(self, name: str, adapter: Adapter, *, terms: Terms | None = None) -> None:
        """Register an adapter."""

    def remove_adapter(self, name: str) -> bool:
        """Forget an adapter."""

    def submit(self, request: Request) -> None:
        """Put a request into the queue."""

    def cancel(self, request_id: str) -> Output | None:
        """End a request at once."""

    def step(self) -> list[Output]:
        """One forward."""

    def counters(self) -> Counters:
        """What the engine has done so far, and its present state."""


def ensure_adapter(engine: AnyEngine, adapter: Adapter | None, terms: Terms | None) -> None:
    """Register an adapter under its digest, unless the engine has it already.

    Raises:
        ConfigError: It can't run in a mixed batch, or doesn't fit the base.
    """
    if adapter is not None and adapter.digest not in engine.adapters:
        engine.add_adapter(adapter.digest, adapter, terms=terms)
