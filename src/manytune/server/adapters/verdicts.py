"""Which adapters of the store this server can run: what `/v1/models` lists, found without running one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import torch

from manytune.errors import ManytuneError, ShortMemoryError
from manytune.examination.plain_files import check_files
from manytune.free_memory import naming_short_memory
from manytune.methods.checkpoint.format import TENSORS_NAME
from manytune.methods.config import PeftConfig
from manytune.methods.tuners.terms import Adapter, Terms
from manytune.mixed.memory_estimate import AdapterLimit
from manytune.server.adapters.validation import MetaBase, check_options
from manytune.store.adapters import check_base
from manytune.store.base import Base
from manytune.store.classifier_parts import Classifiers, classifier_parts
from manytune.store.entry import StoreEntry
from manytune.store.resident import ResidentAdapter
from manytune.store.servability import check_task, is_for_classes, served_terms
from manytune.store.store import AdapterStore
from manytune.store.tensors_in_memory import TensorsInMemory

_log = logging.getLogger(__name__)


class Verdicts:
    """Why adapters can't be served, by digest. Any number of threads may use it.

    Args:
        store: Where the adapters are kept.
        base: What they run on.
        max_bytes: Largest size of an adapter's tensors.
        limit: What one adapter may take while it runs; see `served_terms`.
    """

    def __init__(
        self, store: AdapterStore, base: Base, *, max_bytes: int, limit: AdapterLimit | None = None
    ) -> None:
        self._limit = limit
        self._store = store
        self._base = base
        self._max_bytes = max_bytes
        self._meta_base = MetaBase(base.model)
        self._classifiers = Classifiers(base.model)
        self._meta_classifiers: dict[tuple[int, bool], MetaBase] = {}
        self._trying = threading.Lock()
        self._found: dict[str, str | None] = {}

    def of(self, entry: StoreEntry) -> str | None:
        """Why this server can't run an adapter that was examined, and what to do instead; None if nothing is known.

        Looked at are its options, and the names, shapes and types of its tensors; its values and the hashes of its
        files are when it is requested, and `note` takes down what was found then. Of one whose files are elsewhere its
        manifest is read alone.
        """
        if not entry.is_here:
            return self._by_manifest(entry)
        with self._trying:
            if entry.digest not in self._found:
                try:
                    self._found[entry.digest] = _message(lambda: self._try(entry))
                except ShortMemoryError:  # it isn't known; nothing speaks against the adapter
                    return None
            return self._found[entry.digest]

    def _by_manifest(self, entry: StoreEntry) -> str | None:
        found = _message(lambda: self._check_base(entry)) or entry.manifest.unservable
        with self._trying:
            return (
                self._found.get(entry.digest)
                if found is None
                else self._found.setdefault(entry.digest, found)
            )

    def known(self, digest: str) -> str | None:
        """The same as far as it has been tried, without waiting for anything; None, too, if it hasn't."""
        return self._found.get(digest)

    def note(self, digest: str, reason: str | None) -> None:
        """Take down what loading an adapter for a request has shown."""
        with self._trying:
            self._found[digest] = reason

    def forget(self, digest: str) -> None:
        """Try an adapter again when its verdict is asked for next."""
        with self._trying:
            self._found.pop(digest, None)

    def terms(self, adapter: ResidentAdapter, *, is_valid: bool) -> Terms:
        """The terms of an adapter in memory.

        Args:
            adapter: The adapter.
            is_valid: Whether its tensors were checked before.

        Raises:
            ConfigError: It can't be served.
            StoreError: A tensor is missing, unexpected, doesn't fit the base, or isn't finite.
        """
        with self._trying, torch.no_grad():
            check_task(adapter.config)
            if not is_valid:
                self._meta_base_of(adapter).check(adapter)
            return self._terms(adapter)

    def _terms(self, adapter: Adapter) -> Terms:
        return served_terms(adapter, self._base.model, encodes=self._base.is_encoder, limit=self._limit)

    def _meta_base_of(self, adapter: ResidentAdapter) -> MetaBase:
        """What an adapter's tensors are compared with: the base, or a classifier of its kind around it."""
        if not is_for_classes(adapter.config):
            return self._meta_base
        parts = classifier_parts(adapter, self._classifiers)
        kind = (parts.classes, parts.of_words)
        if kind not in self._meta_classifiers:
            if len(self._meta_classifiers) >= 8:
                self._meta_classifiers.clear()
            self._meta_classifiers[kind] = MetaBase(
                self._classifiers.of(parts.classes, of_words=parts.of_words)
            )
        return self._meta_classifiers[kind]

    def _try(self, entry: StoreEntry) -> None:
        check_files(self._store.root, entry.path, max_bytes=self._max_bytes)
        self._check_base(entry)
        config = PeftConfig.from_pretrained(entry.path)
        check_options(config)
        check_task(config)
        tensors = TensorsInMemory(entry.path / TENSORS_NAME)
        adapter = ResidentAdapter(entry.digest, config, tensors, tensors.nbytes, entry.manifest)
        self._meta_base_of(adapter).check_shapes(adapter)
        self._terms(adapter)

    def _check_base(self, entry: StoreEntry) -> None:
        note = check_base(entry.path, entry.manifest, self._base.fingerprint)
        if note is not None:
            _log.warning("adapter %s: %s", entry.digest[:12], note)


def _message(attempt: Callable[[], None]) -> str | None:
    try:
        with naming_short_memory("checking the adapter"):
            attempt()
    except ShortMemoryError:
        raise
    except ManytuneError as error:
        return str(error)
    except Exception as error:  # whatever a malformed file can make of a library
        return f"the adapter can't be read ({type(error).__name__}: {str(error)[:200]})."
    return None
