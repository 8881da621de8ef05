"""The adapters of a store as a server sees them: by name, in memory while they answer, each version by its content.

The engine knows an adapter by the hash of its content. So a name that gets a new version serves it from the next
request on, and requests that run go on with the version that they began with.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from manytune.errors import CacheFullError, ManytuneError, StoreError
from manytune.methods.registry import terms_of
from manytune.server.http_errors import Refusal
from manytune.server.validation import Skeleton, check_files
from manytune.store.adapters import open_adapter
from manytune.store.base import Base
from manytune.store.cache import AdapterCache
from manytune.store.resident import ResidentAdapter
from manytune.store.store import AdapterStore, StoreEntry
from manytune.store.verification import Verification, verify_adapter

_log = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class Failures:
    """What went wrong with one version of an adapter.

    Attributes:
        version: The hash of its content.
        count: How often.
        last: The last message.
    """

    version: str
    count: int
    last: str


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
        self._checking = threading.Lock()
        self._skeleton = Skeleton(base.model)
        self._failures: dict[str, Failures] = {}  # by name

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
        with self._noting(name, own):
            if own not in self._checked:
                check_files(self.store.root, self.store.directory(own), most_bytes=self.cache.budget)
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
                self.drop(own)
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
        """All adapters by name, without those whose manifests can't be read."""
        for entry in self.store.entries(unreadable=lambda own, error: None):
            for name in entry.names:
                if name != self.base_name and MODEL_NAME.fullmatch(name):
                    yield name, entry

    def unreadable(self) -> dict[str, tuple[str, str]]:
        """The others: their hashes and what is wrong, by name."""
        wrong: dict[str, str] = {}
        self.store.entries(unreadable=lambda own, error: wrong.update({own: str(error)}))
        return {name: (own, wrong[own]) for name, own in self.names().items() if own in wrong}

    def note_failure(self, name: str, own: str, message: str) -> None:
        """Count that a version of an adapter couldn't be used."""
        with self._lock:
            former = self._failures.get(name)
            count = former.count if former is not None and former.version == own else 0
            self._failures[name] = Failures(own, count + 1, message)

    def failures(self, name: str, own: str) -> Failures | None:
        """What went wrong with a version of an adapter since the server started."""
        with self._lock:
            found = self._failures.get(name)
        return found if found is not None and found.version == own else None

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
        own = self.resolve(name)
        directory = self.store.directory(own)
        with self._noting(name, own):
            check_files(self.store.root, directory, most_bytes=self.cache.budget)
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
        with self._checking:
            if adapter.id not in self._checked:
                self._skeleton.check(adapter)
                self._checked[adapter.id] = terms_of(adapter, self._base.model).virtual_tokens
            return self._checked[adapter.id]

    @contextmanager
    def _noting(self, name: str, own: str) -> Iterator[None]:
        """Count what goes wrong, and make a refusal of whatever an adapter's files can bring about."""
        try:
            yield
        except CacheFullError:  # not the adapter's fault
            raise
        except Exception as error:
            self.note_failure(name, own, str(error))
            if isinstance(error, ManytuneError):
                raise
            _log.warning("adapter %s can't be read", name, exc_info=error)
            raise StoreError(
                f"{self.store.directory(own)}: the adapter can't be read ({type(error).__name__}: {str(error)[:200]}). "
                "Add it again from its source."
            ) from error
