"""Adapters in memory, as many as a budget allows; the least recently used make room.

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

from manytune.errors import CacheFullError, StoreError
from manytune.store.fingerprint import Fingerprint
from manytune.store.resident import ResidentAdapter, read_resident
from manytune.store.store import AdapterStore


@dataclass(frozen=True)
class CacheCounters:
    """What a cache has done, and how it stands.

    Attributes:
        hits: Requests that found their adapter in memory, or on its way.
        misses: Requests that had to load it.
        prefetched: Loads that nobody waited for.
        evictions: Adapters that made room for others.
        load_seconds: Time spent loading, of all threads together.
        resident: Adapters in memory.
        pinned: Those of them that can't make room now.
        nbytes: Size of the tensors in memory.
        budget: What that may come to.
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
    """Adapters of a store in memory, in their own dtype. Any number of threads may use it.

    An adapter in use should be pinned: one that isn't may make room, and is then loaded anew for the next who asks,
    while those who hold it keep its memory alive outside the budget.

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
        """An adapter by name or content hash, from memory if it is there. One that several ask for is loaded once.

        Raises:
            CacheFullError: It doesn't fit into the budget beside what is pinned now.
            StoreError: There is no such adapter, it is damaged, or larger than the budget.
            BaseMismatchError: It was trained on another base.
        """
        return self._get(self.store.resolve(reference), asked=True)

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
        own = self.store.resolve(reference)
        with self._lock:
            self._pins[own] = self._pins.get(own, 0) + 1
        try:
            return self._get(own, asked=True)
        except BaseException:
            self._release(own)
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
        """Let an adapter go, unless it is pinned or not there. Says whether it went."""
        own = self.store.resolve(reference)
        with self._lock:
            return own not in self._pins and self._drop(own)

    @property
    def resident(self) -> tuple[str, ...]:
        """The content hashes of the adapters in memory."""
        with self._lock:
            return tuple(self._resident)

    def counters(self) -> CacheCounters:
        """What the cache has done so far, and how it stands."""
        with self._lock:
            return CacheCounters(
                self._hits,
                self._misses,
                self._prefetched,
                self._evictions,
                self._load_seconds,
                len(self._resident),
                sum(own in self._pins for own in self._resident),
                self._nbytes,
                self.budget,
            )

    def close(self) -> None:
        """Finish what is being prefetched; afterwards the cache holds nothing."""
        if self._prefetcher is not None:
            self._prefetcher.shutdown(cancel_futures=True)
        with self._lock:
            self._resident.clear()
            self._nbytes = 0

    # -- parts

    def _prefetch(self, reference: str) -> ResidentAdapter:
        return self._get(self.store.resolve(reference), asked=False)

    def _get(self, own: str, *, asked: bool) -> ResidentAdapter:
        with self._lock:
            present = self._resident.get(own)
            pending = self._loading.get(own)
            if present is not None:
                self._resident.move_to_end(own)
            if present is not None or pending is not None:
                self._hits += asked
            elif asked:
                self._misses += 1
            else:
                self._prefetched += 1
            if present is None and pending is None:
                mine: Future[ResidentAdapter] = Future()
                self._loading[own] = mine
        if present is not None:
            return present
        return pending.result() if pending is not None else self._load(own, mine)

    def _load(self, own: str, promise: Future[ResidentAdapter]) -> ResidentAdapter:
        start = time.perf_counter()
        try:
            adapter = read_resident(self.store.directory(own), fingerprint=self._fingerprint)
            with self._lock:
                self._make_room(adapter)
                self._resident[own] = adapter
                self._nbytes += adapter.nbytes
        except BaseException as error:
            with self._lock:
                del self._loading[own]
            promise.set_exception(error)
            raise
        with self._lock:
            del self._loading[own]
            self._load_seconds += time.perf_counter() - start
        promise.set_result(adapter)
        return adapter

    def _make_room(self, adapter: ResidentAdapter) -> None:
        pinned = sum(self._resident[own].nbytes for own in self._pins if own in self._resident)
        if pinned + adapter.nbytes > self.budget:
            kind = StoreError if adapter.nbytes > self.budget else CacheFullError
            raise kind(
                f"adapter {adapter.digest[:12]} has {adapter.nbytes:,} bytes; the cache's budget is {self.budget:,}, "
                f"of which {pinned:,} are in use by pinned adapters. Give it a larger budget, or wait until requests "
                "have finished."
            )
        while self._nbytes + adapter.nbytes > self.budget:
            self._drop(next(own for own in self._resident if own not in self._pins))
            self._evictions += 1

    def _drop(self, own: str) -> bool:
        going = self._resident.pop(own, None)
        if going is not None:
            self._nbytes -= going.nbytes
        return going is not None

    def _release(self, own: str) -> None:
        with self._lock:
            left = self._pins.pop(own) - 1
            if left:
                self._pins[own] = left
