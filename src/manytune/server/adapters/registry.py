"""The adapters of a store by name: which version a name means, which are in memory, pinned and in use.

The engine identifies an adapter by its digest, the hash of its content. So a name that gets a new version serves it
from the next request on, and running requests continue with the version that they began with.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

from manytune.errors import (
    CacheFullError,
    ManytuneError,
    ShortMemoryError,
    StoreError,
    UnknownAdapterError,
    UnreachableError,
)
from manytune.examination.examiner import Examiner, shared_examiner
from manytune.examination.plain_files import check_files
from manytune.free_memory import naming_short_memory
from manytune.methods.config import TaskType
from manytune.methods.tuners.terms import Terms
from manytune.mixed.memory_estimate import AdapterLimit
from manytune.server.adapters.catalogue import Catalogue, Listed
from manytune.server.adapters.examined import Examined
from manytune.server.adapters.failures import FailureCounts, Failures
from manytune.server.adapters.file_states import FileStates
from manytune.server.adapters.names import Names
from manytune.server.adapters.verdicts import Verdicts
from manytune.server.http_errors import HttpError, model_not_found
from manytune.store.adapters import open_adapter
from manytune.store.base import Base
from manytune.store.cache import AdapterCache
from manytune.store.entry import StoreEntry
from manytune.store.manifest import Manifest
from manytune.store.resident import ResidentAdapter
from manytune.store.servability import is_for_classes
from manytune.store.store import AdapterStore
from manytune.store.verification import Verification, verify_adapter

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """The model that answers a request.

    Attributes:
        name: Its name in the request.
        adapter: In memory until it is released; None for the base.
        terms: The adapter's terms for the base; None for the base.
    """

    name: str
    adapter: ResidentAdapter | None = None
    terms: Terms | None = None

    @property
    def digest(self) -> str | None:
        """The adapter's digest; None for the base."""
        return None if self.adapter is None else self.adapter.digest

    @property
    def manifest(self) -> Manifest | None:
        """The adapter's manifest; None for the base."""
        return None if self.adapter is None else self.adapter.manifest

    @property
    def is_classifier(self) -> bool:
        """Whether it answers texts with labels."""
        return self.adapter is not None and is_for_classes(self.adapter.config)

    @property
    def classifies_words(self) -> bool:
        """Whether it answers words with labels."""
        return self.adapter is not None and self.adapter.config.task_type == TaskType.TOKEN_CLS

    @property
    def virtual_tokens(self) -> int:
        """Positions that the adapter takes before a prompt."""
        return 0 if self.terms is None else self.terms.virtual_tokens


class AdapterRegistry:
    """Names to adapters in memory. Any number of threads may use it.

    Args:
        store: Where the adapters are kept.
        base: What they run on.
        memory: Bytes that their tensors may take.
        base_name: The plain base's name in requests; an adapter of this name isn't accessible.
        limit: What one adapter may take while it runs; see `served_terms`.
        examiner: Examines adapters before anything of them is read; None for the one that the process's servers share.

    Attributes:
        catalogue: What listings say of them.
        examined: What is known of them from their examination.
        store_names: What their names mean.
    """

    def __init__(
        self,
        store: AdapterStore,
        base: Base,
        *,
        memory: int,
        base_name: str,
        limit: AdapterLimit | None = None,
        examiner: Examiner | None = None,
    ) -> None:
        self.store = store
        self.base_name = base_name
        self.cache = AdapterCache(store, budget=memory, fingerprint=base.fingerprint)
        self.store_names = Names(store, lambda digest: digest in self.cache.resident, base_name=base_name)
        self._base = base
        self._lock = threading.Lock()
        self._in_use: Counter[str] = Counter()  # requests by digest
        self._pins: dict[str, ResidentAdapter] = {}  # by name
        self._checking = threading.Lock()
        self._valid: set[str] = set()  # digests of the adapters that passed all checks
        self._terms: dict[str, Terms] = {}  # by digest, of adapters in memory
        self._verdicts = Verdicts(store, base, max_bytes=memory, limit=limit)
        self.examined = Examined(store, examiner or shared_examiner(), max_bytes=memory)
        self.catalogue = Catalogue(store, self._verdicts, self.examined, base_name=base_name)
        self._failures = FailureCounts()
        self._states = FileStates(store)

    # -- for requests

    def acquire(self, name: str, *, classifies: bool = False, waits: bool = True) -> Model:
        """The model of a name; an adapter stays in memory until `release`.

        Args:
            name: The name.
            classifies: Whether it is to answer with labels, rather than with text or embeddings.
            waits: Whether to wait for the examination of an adapter that is new.

        Raises:
            NotExaminedError: It wasn't examined yet.
            HttpError: 404 if there is none, 400 if it is of the other kind.
            StoreError: It is damaged, or there is no memory for it now.
            BaseMismatchError: It was trained on another base.
            ConfigError: It can't run in a mixed batch.
        """
        model = self._acquire(name, waits=waits)
        if model.is_classifier != classifies:
            self.release(model)
            raise _of_the_other_kind(model)
        return model

    async def acquire_when_examined(self, name: str, *, classifies: bool = False) -> Model:
        """`acquire` in another thread; the event loop waits for the examination of an adapter that is new."""
        if name == self.base_name:
            return self.acquire(name, classifies=classifies)
        acquire = partial(self.acquire, classifies=classifies, waits=False)
        return await self.examined.when_examined(acquire, name, partial(self._fetch, name))

    def _acquire(self, name: str, *, waits: bool = True) -> Model:
        if name == self.base_name:
            return Model(name)
        digest = self.resolve(name)
        found = None if waits or digest in self._valid else self.examined.known(digest)
        with self._recording_failures(name, digest):
            state = self._states.now(digest)
            if digest not in self._valid:
                (found or self.examined.examine(digest)).require()
                check_files(self.store.root, self.store.directory(digest), max_bytes=self.cache.budget)
            adapter = self.cache.pin(digest)
            if adapter.digest != digest:
                self.cache.unpin(replace(adapter, digest=digest))
                raise StoreError(
                    f"{self.store.directory(digest)}: the manifest was changed after the adapter was added. Add it "
                    "again."
                )
            try:
                terms = self._checked_terms(adapter)
            except BaseException:
                self.cache.unpin(adapter)
                self.drop(digest)
                raise
            self._verdicts.note(digest, None)
        self._states.remember(digest, state)
        with self._lock:
            self._in_use[digest] += 1
        return Model(name, adapter, terms)

    def release(self, model: Model) -> None:
        """Undo one `acquire`."""
        if model.adapter is None:
            return
        with self._lock:
            self._in_use[model.adapter.digest] -= 1
            self._in_use += Counter()  # drops entries at zero
        self.cache.unpin(model.adapter)

    def resolve(self, name: str) -> str:
        """The digest of the version that a name means now; while the store can't be reached, that of the one in memory.

        Raises:
            HttpError: It isn't the name of an adapter in the store.
            UnreachableError: The store can't be reached, and the adapter isn't in memory.
        """
        return self.store_names.resolve(name)

    # -- for operators

    def names(self) -> dict[str, str]:
        """The digest of each name; see `Names.all`."""
        return self.store_names.all()

    def look_up(self, name: str) -> Listed:
        """An adapter as the listings have it, read again if its name means another version by now.

        Raises:
            HttpError: 404 if there is none.
            NotExaminedError: That version wasn't examined yet.
        """
        digest = self.resolve(name)
        listed = self.catalogue.get(name)
        if listed is None or listed.digest != digest:
            listed = self.catalogue.update_one(name, digest)
        if listed is None:
            raise model_not_found(name)
        return listed

    def manifest_of(self, name: str) -> Manifest:
        """What an adapter says about itself.

        Raises:
            HttpError: 404 if there is none.
            StoreError: It can't be read.
            NotExaminedError: It wasn't examined yet.
        """
        with self.store.description.naming_unreachable():
            digest = self.resolve(name)
            self.examined.known(digest).require()
            return self.store.described(digest).manifest

    def unservable(self, entry: StoreEntry) -> str | None:
        """Why an adapter can't be served, and what to do instead; None if it can."""
        return self._verdicts.of(entry)

    def record_failure(self, name: str, digest: str, message: str) -> None:
        """Count that a version of an adapter couldn't be used."""
        self._failures.record(name, digest, message)

    def failures(self, name: str, digest: str) -> Failures | None:
        """The errors of a version of an adapter since the server started."""
        return self._failures.of(name, digest)

    def load(self, name: str) -> ResidentAdapter:
        """Load an adapter into memory; see `acquire`."""
        model = self._acquire(name)
        self.release(model)
        assert model.adapter is not None
        return model.adapter

    def unload(self, name: str) -> bool:
        """Remove an adapter from memory. False if it wasn't there.

        Raises:
            HttpError: 409 if it is pinned or in use.
        """
        digest = self.resolve(name)
        if self.is_pinned(name) or self.in_use(digest):
            raise HttpError(
                409,
                f"{name} is pinned or in use; unpin it, or wait until its requests have ended.",
                code="adapter_in_use",
            )
        return self.cache.evict(digest)

    def drop(self, digest: str) -> None:
        """Remove a version from memory, if it is there and not in use."""
        if digest in self.cache.resident:
            with suppress(UnknownAdapterError):  # it was evicted meanwhile, and has left the store as well
                self.cache.evict(digest)

    def note_changed_files(self) -> None:
        """Refuse adapters in memory whose files were changed; requests that run continue with what was read."""
        for digest in self._states.changed():
            directory = self.store.directory(digest)
            _log.error("%s: files of this adapter were changed while it was in memory", directory)
            self.drop(digest)
            try:
                self.examined.examine(digest).require()
                open_adapter(directory)
            except ManytuneError as error:
                self._verdicts.note(digest, str(error))

    def forget_absent(self) -> None:
        """Drop what is kept for adapters that aren't in memory any more."""
        resident = set(self.cache.resident)
        self._states.keep(resident)
        with self._checking:
            self._terms = {digest: terms for digest, terms in self._terms.items() if digest in resident}

    def pin(self, name: str) -> ResidentAdapter:
        """Keep an adapter in memory until `unpin`; new versions take the place of former ones."""
        adapter = self.load(name)
        self.cache.pin(adapter.digest)
        with self._lock:
            former = self._pins.get(name)
            self._pins[name] = adapter
        if former is not None:
            self.cache.unpin(former)
        return adapter

    def unpin(self, name: str) -> bool:
        """Undo `pin`. False if it wasn't pinned."""
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
        digest = self.resolve(name)
        with self._recording_failures(name, digest):
            self.examined.forget(digest)
            self.examined.examine(digest).require()
            directory = self.store.fetch(digest)
            check_files(self.store.root, directory, max_bytes=self.cache.budget)
            open_adapter(directory, base=self._base)
            found = verify_adapter(directory)
        self._verdicts.forget(digest)
        reason = self.unservable(self.store.entry(digest))
        return replace(found, unservable=reason)

    def is_pinned(self, name: str) -> bool:
        """Whether an adapter is pinned."""
        with self._lock:
            return name in self._pins

    def in_use(self, digest: str) -> int:
        """How many requests use a version of an adapter."""
        with self._lock:
            return self._in_use[digest]

    # -- parts

    def _fetch(self, name: str, digest: str) -> None:
        with self._recording_failures(name, digest):
            self.store.fetch(digest)

    def _checked_terms(self, adapter: ResidentAdapter) -> Terms:
        """An adapter's terms, computed once for as long as it is in memory; its tensors are checked once for ever."""
        digest = adapter.digest
        with self._checking:
            if digest not in self._terms:
                self._terms[digest] = self._verdicts.terms(adapter, is_valid=digest in self._valid)
            self._valid.add(digest)
            return self._terms[digest]

    @contextmanager
    def _recording_failures(self, name: str, digest: str) -> Iterator[None]:
        """Count errors, and turn whatever a malformed file can raise into a `StoreError`."""
        try:
            with naming_short_memory(f"loading {name}"), self.store.description.naming_unreachable():
                yield
        except (CacheFullError, ShortMemoryError, UnreachableError):  # not the adapter's fault
            raise
        except Exception as error:
            self.record_failure(name, digest, str(error))
            if isinstance(error, ManytuneError):
                self._verdicts.note(digest, str(error))
                raise
            _log.warning("adapter %s can't be read", name, exc_info=error)
            raise StoreError(
                f"{self.store.directory(digest)}: the adapter can't be read ({type(error).__name__}: "
                f"{str(error)[:200]}). Add it again from its source."
            ) from error


def _of_the_other_kind(model: Model) -> HttpError:
    if model.is_classifier:
        message = "is a classifier, which answers texts with labels; send them to /v1/classify, without label_words."
    elif model.adapter is None:
        message = "is the base, which has no head for labels; name a classifier, or give label_words."
    else:
        message = (
            "is no classifier: it was trained for text or embeddings, and has no labels; give label_words."
        )
    return HttpError(400, f"{model.name} {message}", code="unsupported_model", param="model")
