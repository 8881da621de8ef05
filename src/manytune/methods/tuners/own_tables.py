"""Embedding tables that adapters bring along: each adapter has its own, and the base's stay as they are.

A table takes the place of the base's in the base's own parameter, which keeps its identity, so that all modules that
share the parameter (a tied output head) follow. Going back puts the base's memory back: bit-identical, however often.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from manytune.errors import AdapterError
from manytune.sharded import is_sharded

Tables = Mapping[nn.Parameter, Tensor]


class OwnTables:
    """The tables of a model's adapters, by the parameter of the base whose place they take.

    Mutates: `use`, `instead` and `forget` replace the data of these parameters; `forget` of the last one leaves the
        base's.
    """

    def __init__(self) -> None:
        self._base: dict[nn.Parameter, Tensor] = {}
        self._own: dict[str, dict[nn.Parameter, Tensor]] = {}
        self._names: list[str] = []
        self._present: dict[nn.Parameter, Tensor] = {}  # what each parameter holds now

    def __bool__(self) -> bool:
        """Whether any adapter has a table of its own."""
        return bool(self._own)

    def bring(self, adapter_name: str, tables: Tables) -> None:
        """Keep an adapter's tables, frozen, in the base's dtype; one that equals the base's is none of its own.

        It isn't in use before the next `use`.

        Raises:
            AdapterError: The base's table is on the meta device, or sharded, so nothing can take its place.
        """
        for parameter, table in tables.items():
            base = self._base.get(parameter, parameter.data)
            if base.is_meta:
                raise AdapterError(
                    f"adapter '{adapter_name}' brings an embedding table of its own, and the base's is kept elsewhere "
                    "between calls (a device_map with offloading). Load the base without it."
                )
            if is_sharded(base):
                raise AdapterError(
                    f"adapter '{adapter_name}' brings an embedding table of its own, and the base's is sharded. Load "
                    "the adapter before the model is sharded."
                )
            value = table.detach().to(base.device, base.dtype, copy=True)
            mine = self._own.setdefault(adapter_name, {})
            if torch.equal(value, base):
                mine.pop(parameter, None)
            else:
                mine[parameter] = value
                self._present.setdefault(parameter, self._base.setdefault(parameter, base))
            if not mine:
                del self._own[adapter_name]
        self.use(self._names)

    @property
    def names(self) -> list[str]:
        """The adapters whose tables the base has now, if they have any."""
        return self._names

    def of(self, adapter_name: str) -> Tables:
        """An adapter's tables; empty if it has the base's."""
        return self._own.get(adapter_name, {})

    def as_seen_by(self, adapter_name: str | None) -> Tables:
        """The tables of the base as an adapter, or the base alone, has them; the other parameters hold the base's."""
        own = {} if adapter_name is None else self.of(adapter_name)
        return {p: own.get(p, base).to(p.device) for p, base in self._base.items()}

    def check(self, names: Sequence[str]) -> None:
        """Refuse adapters of which several have a table for one parameter.

        Raises:
            AdapterError: They do.
        """
        self._chosen(names)

    def use(self, names: Sequence[str]) -> None:
        """Let the base have these adapters' tables; its own where they have none.

        Raises:
            AdapterError: See `check`.
        """
        chosen = self._chosen(names)
        self._names = list(names)
        for parameter, base in self._base.items():
            value = chosen.get(parameter, base)
            if self._present[parameter] is not value:
                # The model may have been moved meanwhile.
                parameter.data = value.to(parameter.device, parameter.dtype)
                self._present[parameter] = value

    @contextmanager
    def instead(self, names: Sequence[str]) -> Iterator[None]:
        """Within this context the base has these adapters' tables; afterwards what it had."""
        if not self._base:
            yield
            return
        former = self._names
        self.use(names)
        try:
            yield
        finally:
            self.use(former)

    def forget(self, adapter_name: str) -> None:
        """Drop an adapter's tables."""
        if adapter_name not in self._own:
            return
        self.use([name for name in self._names if name != adapter_name])
        del self._own[adapter_name]
        for parameter in [p for p in self._base if not any(p in own for own in self._own.values())]:
            del self._base[parameter], self._present[parameter]

    def leave(self) -> None:
        """Forget all of them, and leave the base with what it has now."""
        for mapping in (self._base, self._own, self._present):
            mapping.clear()
        self._names = []

    def _chosen(self, names: Sequence[str]) -> dict[nn.Parameter, Tensor]:
        chosen: dict[nn.Parameter, Tensor] = {}
        for name in dict.fromkeys(names):
            for parameter, table in self.of(name).items():
                if parameter in chosen and not torch.equal(chosen[parameter], table):
                    owners = [other for other in names if parameter in self.of(other)]
                    raise AdapterError(
                        f"Adapters {owners} each bring an embedding table of their own, and two tables don't add up. "
                        "Use one of them at a time."
                    )
                chosen[parameter] = table
        return chosen
