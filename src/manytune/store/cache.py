"""Adapters in memory, as many as a budget allows; the least recently used are evicted first.

Semantics: `get` is `read_resident` of the adapter's directory. The cache only saves doing it again.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from manytune.errors import CacheFullError, ShortMemoryError, StoreError
from manytune.store.fingerprint import Fingerprint
from manytune.store.resident import ResidentAdapter, read_resident
from manytune.store.store import AdapterStore


@dataclass(frozen=True, kw_only=True)
class CacheCounters:
    """What a cache has done, and what it holds.

    Attributes:
        hits: Requests that found their adapter in memory, or on its way.
        misses: Requests that had to load it.
        prefetched: Loads that nobody waited for.
        evictions: Adapters that were evicted to load others.
        load_seconds: Time spent loading, of all threads together.
        resident: Adapters in memory.
        pinned: Those of them that can't be evicted now.
        nbytes: Size of the tensors in memory.
        budget: Its upper bound.
    """

    hits: int
    misses: int
    prefetched: int
    evictions: int
    load_seconds: float
    resident: int
    pinned: int
    nbytes: int
    budget: int

    @property
    def hit_rate(self) -> float:
        """Share of the requests that found their adapter in memory; 0 before the first."""
        return self.hits / max(1, self.hits + self.misses)


class AdapterCache:
    """Adapters of a store in memory, in their digest dtype. Any number of threads may use it.

    An adapter in use should be pinned: one that isn't may be evicted. It is then loaded again for the next `get`, while
    those who hold it keep its memory alive outside the budget.

    Args:
        store: Where adapters come from.
        budget: How many bytes their tensors may take.
        fingerprint: The base that they are to run on; adapters of another base are refused. None takes all.
    """

    def __init__(self, store: AdapterStore, *, budget: int, fingerprint: Fingerprint | None = None) -> None:
        self.store = store
        self.budget = budget
        self._fingerprint = fingerprint
        self._resident: OrderedDict[str, ResidentAdapter] = OrderedDict()  # the least recently used first
        self._loading: dict[str, Future[ResidentAdapter]] = {}
        self._pins: dict[str, int] = {}
        self._nbytes = 0
        self._lock = threading.Lock()
        self._prefetcher: ThreadPoolExecutor | None = None
        self._hits = self._misses = self._prefetched = self._evictions = 0
        self._load_seconds = 0.0

    def get(self, reference: str) -> ResidentAdapter:
        """An adapter by name or digest, from memory if it is there. One that several threads ask for is loaded once.

        Raises:
            UnknownAdapterError: There is no such adapter.
            DamagedError: It is damaged.
            BaseMismatchError: It was trained on another base.
            CacheFullError: It exceeds what pinned adapters leave of the budget; it may fit later.
            ShortMemoryError: There isn't enough memory for it now, even without those that aren't in use.
            StoreError: It exceeds the whole budget.
        """
        return self._get(self._digest_of(reference), asked=True)

    @contextmanager
    def pinned(self, reference: str) -> Iterator[ResidentAdapter]:
        """An adapter that stays in memory while the block runs; see `get`."""
        adapter = self.pin(reference)
        try:
            yield adapter
        finally:
            self.unpin(adapter)

    def pin(self, reference: str) -> ResidentAdapter:
        """Keep an adapter in memory until it is unpinned as often as it was pinned; see `get`."""
        digest = self._digest_of(reference)
        with self._lock:
            self._pins[digest] = self._pins.get(digest, 0) + 1
        try:
            return self._get(digest, asked=True)
        except BaseException:
            self._release(digest)
            raise

    def unpin(self, adapter: ResidentAdapter) -> None:
        """Take back one pin."""
        self._release(adapter.digest)

    def prefetch(self, references: Iterable[str]) -> list[Future[ResidentAdapter]]:
        """Begin to load adapters in the background, one after another, and return at once.

        Returns:
            For each a future, which also holds the error if it can't be loaded.
        """
        with self._lock:
            if self._prefetcher is None:
                self._prefetcher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapters")
            prefetcher = self._prefetcher
        return [prefetcher.submit(self._prefetch, reference) for reference in references]

    def evict(self, reference: str) -> bool:
        """Drop an adapter from memory, unless it is pinned or not there. Returns whether it was dropped."""
        digest = self._digest_of(reference)
        with self._lock:
            return digest not in self._pins and self._drop(digest)

    @property
    def resident(self) -> tuple[str, ...]:
        """The digests of the adapters in memory."""
        with self._lock:
            return tuple(self._resident)

    def counters(self) -> CacheCounters:
        """What the cache has done so far, and what it holds now."""
        with self._lock:
            return CacheCounters(
                hits=self._hits,
                misses=self._misses,
                prefetched=self._prefetched,
                evictions=self._evictions,
                load_seconds=self._load_seconds,
                resident=len(self._resident),
                pinned=sum(digest in self._pins for digest in self._resident),
                nbytes=self._nbytes,
                budget=self.budget,
            )

    def close(self) -> None:
        """Wait for the adapter that is being prefetched; afterwards the cache holds nothing."""
        if self._prefetcher is not None:
            self._prefetcher.shutdown(cancel_futures=True)
        with self._lock:
            self._resident.clear()
            self._nbytes = 0

    # -- parts

    def _digest_of(self, reference: str) -> str:
        """One in memory is known by its digest, even if it has left the store, or the store can't be reached."""
        return reference if reference in self._resident else self.store.resolve(reference)

    def _prefetch(self, reference: str) -> ResidentAdapter:
        return self._get(self.store.resolve(reference), asked=False)

    def _get(self, digest: str, *, asked: bool) -> ResidentAdapter:
        with self._lock:
            present = self._resident.get(digest)
            pending = self._loading.get(digest)
            if present is not None:
                self._resident.move_to_end(digest)
            if present is not None or pending is not None:
                self._hits += asked
            elif asked:
                self._misses += 1
            else:
                self._prefetched += 1
            if present is None and pending is None:
                mine: Future[ResidentAdapter] = Future()
                self._loading[digest] = mine
        if present is not None:
            return present
        return pending.result() if pending is not None else self._load(digest, mine)

    def _load(self, digest: str, promise: Future[ResidentAdapter]) -> ResidentAdapter:
        start = time.perf_counter()
        try:
            adapter = self._read(digest)
            with self._lock:
                self._evict_for(adapter)
                self._resident[digest] = adapter
                self._nbytes += adapter.nbytes
        except BaseException as error:
            with self._lock:
                del self._loading[digest]
            promise.set_exception(error)
            raise
        with self._lock:
            del self._loading[digest]
            self._load_seconds += time.perf_counter() - start
        promise.set_result(adapter)
        return adapter

    def _read(self, digest: str) -> ResidentAdapter:
        """Read an adapter; if there isn't enough memory for it, in the place of all that aren't in use."""
        directory = self.store.fetch(digest)
        try:
            return read_resident(directory, fingerprint=self._fingerprint)
        except ShortMemoryError:
            with self._lock:
                idle = [other for other in self._resident if other not in self._pins]
                self._evictions += sum(map(self._drop, idle))
            if not idle:
                raise
            return read_resident(directory, fingerprint=self._fingerprint)

    def _evict_for(self, adapter: ResidentAdapter) -> None:
        pinned = sum(self._resident[digest].nbytes for digest in self._pins if digest in self._resident)
        if pinned + adapter.nbytes > self.budget:
            kind = StoreError if adapter.nbytes > self.budget else CacheFullError
            raise kind(
                f"adapter {adapter.digest[:12]} has {adapter.nbytes:,} bytes; the cache's budget is {self.budget:,}, "
                f"of which {pinned:,} are in use by pinned adapters. Give it a larger budget, or wait until requests "
                "have finished."
            )
        while self._nbytes + adapter.nbytes > self.budget:
            self._drop(next(digest for digest in self._resident if digest not in self._pins))
            self._evictions += 1

    def _drop(self, digest: str) -> bool:
        dropped = self._resident.pop(digest, None)
        if dropped is not None:
            self._nbytes -= dropped.nbytes
        return dropped is not None

    def _release(self, digest: str) -> None:
        with self._lock:
            left = self._pins.pop(digest) - 1
            if left:
                self._pins[digest] = left
