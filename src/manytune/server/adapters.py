"""The adapters of a store as a server sees them: by name, in memory while they answer, each version by its content.

The engine knows an adapter by the hash of its content. So a name that gets a new version serves it from the next
request on, and requests that run go on with the version that they began with.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from manytune.engine.batched import parts_of
from manytune.errors import StoreError
from manytune.server.refusals import Refusal
from manytune.store.adapters import open_adapter
from manytune.store.base import Base
from manytune.store.library import AdapterStore, StoreEntry
from manytune.store.ram_cache import AdapterCache
from manytune.store.resident import ResidentAdapter
from manytune.store.verification import Verification, verify_adapter

#: What a model may be called in a request.
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Model:
    """Who answers a request.

    Attributes:
        name: What the request called it.
        adapter: In memory until it is released; None for the base.
        virtual_tokens: Tokens that it puts before a prompt.
    """

    name: str
    adapter: ResidentAdapter | None = None
    virtual_tokens: int = 0


class Adapters:
    """Names to adapters in memory. Any number of threads may use it.

    Args:
        store: Where they are kept.
        base: What they run on.
        memory: Bytes that their tensors may take.
        base_name: What requests call the plain base; an adapter of this name can't be reached.
    """

    def __init__(self, store: AdapterStore, base: Base, *, memory: int, base_name: str) -> None:
        self.store = store
        self.base_name = base_name
        self.cache = AdapterCache(store, budget=memory, fingerprint=base.fingerprint)
        self._base = base
        self._lock = threading.Lock()
        self._using: Counter[str] = Counter()
        self._pins: dict[str, ResidentAdapter] = {}  # by name
        self._checked: dict[str, int] = {}  # virtual tokens by hash, of those that were found sound

    # -- for requests

    def acquire(self, name: str) -> Model:
        """The model of a name; an adapter stays in memory until `release`.

        Raises:
            Refusal: 404 if there is none.
            StoreError: It is damaged, or there is no memory for it now.
            BaseMismatchError: It was trained on another base.
            ConfigError: It can't run in a mixed batch.
        """
        if name == self.base_name:
            return Model(name)
        own = self.resolve(name)
        if own not in self._checked:
            _refuse_links(self.store.root, self.store.directory(own))
        adapter = self.cache.pin(own)
        if adapter.id != own:
            self.cache.unpin(replace(adapter, id=own))
            raise StoreError(
                f"{self.store.directory(own)}: the manifest was changed after the adapter was added. Add it again."
            )
        try:
            virtual = self._check(adapter)
        except BaseException:
            self.cache.unpin(adapter)
            raise
        with self._lock:
            self._using[own] += 1
        return Model(name, adapter, virtual)

    def release(self, model: Model) -> None:
        """Take back one `acquire`."""
        if model.adapter is None:
            return
        with self._lock:
            self._using[model.adapter.id] -= 1
            self._using += Counter()  # forgets those at zero
        self.cache.unpin(model.adapter)

    def resolve(self, name: str) -> str:
        """The hash that a name stands for now.

        Raises:
            Refusal: It isn't the name of an adapter in the store.
        """
        unknown = Refusal(
            404,
            f"there is no model {name[:100]!r}; GET /v1/models lists them.",
            code="model_not_found",
            param="model",
        )
        if not MODEL_NAME.fullmatch(name):
            raise unknown
        link = self.store.root / "names" / name
        if link.is_symlink() or not link.is_file():
            raise unknown
        try:
            return self.store.resolve(name)
        except StoreError:
            raise unknown from None

    # -- for operators

    def names(self) -> dict[str, str]:
        """All names with the hashes that they stand for."""
        return {name: own for name, own in self.store.names().items() if name != self.base_name}

    def entries(self) -> Iterator[tuple[str, StoreEntry]]:
        """All adapters by name."""
        for entry in self.store.entries():
            for name in entry.names:
                if name != self.base_name:
                    yield name, entry

    def load(self, name: str) -> ResidentAdapter:
        """Bring an adapter into memory; see `acquire`."""
        model = self.acquire(name)
        self.release(model)
        assert model.adapter is not None
        return model.adapter

    def unload(self, name: str) -> bool:
        """Let an adapter's memory go. False if it wasn't there.

        Raises:
            Refusal: 409 if it is pinned or answering.
        """
        own = self.resolve(name)
        if self.is_pinned(name) or self.in_use(own):
            raise Refusal(
                409,
                f"{name} is pinned or answering; unpin it, or wait for its requests.",
                code="adapter_in_use",
            )
        return self.cache.evict(own)

    def drop(self, own: str) -> None:
        """Let go a version that no name stands for, if it is in memory and nobody uses it."""
        if own in self.cache.resident:
            with suppress(StoreError):  # it has left the store, too: the cache lets it go in its own time
                self.cache.evict(own)

    def pin(self, name: str) -> ResidentAdapter:
        """Keep an adapter in memory until `unpin`, through new versions."""
        adapter = self.load(name)
        self.cache.pin(adapter.id)
        with self._lock:
            former = self._pins.get(name)
            self._pins[name] = adapter
        if former is not None:
            self.cache.unpin(former)
        return adapter

    def unpin(self, name: str) -> bool:
        """Take back `pin`. False if it wasn't pinned."""
        with self._lock:
            adapter = self._pins.pop(name, None)
        if adapter is not None:
            self.cache.unpin(adapter)
        return adapter is not None

    def verify(self, name: str) -> Verification:
        """Check an adapter's files, values and base on disk.

        Raises:
            StoreError: A file is missing or damaged, or a value isn't finite.
            BaseMismatchError: It was trained on another base.
        """
        directory = self.store.directory(self.resolve(name))
        open_adapter(directory, base=self._base)
        return verify_adapter(directory)

    def is_pinned(self, name: str) -> bool:
        """Whether an operator has pinned it."""
        with self._lock:
            return name in self._pins

    def in_use(self, own: str) -> int:
        """How many requests hold an adapter."""
        with self._lock:
            return self._using[own]

    # -- parts

    def _check(self, adapter: ResidentAdapter) -> int:
        """Refuse what must not reach the engine; once for each content."""
        if adapter.id not in self._checked:
            for name, tensor in adapter.tensors.items():
                if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
                    raise StoreError(f"adapter {adapter.id[:12]}: {name} has values that aren't finite.")
            self._checked[adapter.id] = parts_of(adapter, self._base.model).virtual_tokens
        return self._checked[adapter.id]


def _refuse_links(root: Path, directory: Path) -> None:
    """An adapter is what lies in its directory, and the directory lies in the store."""
    if not directory.resolve().is_relative_to(root.resolve()):
        raise StoreError(f"{directory}: this leads out of the store.")
    for path in (directory, *directory.rglob("*")):
        if path.is_symlink():
            raise StoreError(f"{path}: a symbolic link can't be part of an adapter that is served.")
