"""What the examinations of a store's adapters have found: each version is examined once, before anything of it is read.

An examination takes milliseconds, or as long as its limits allow. Requests don't wait for it in the threads that all
requests share: `when_examined` waits in the event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

from manytune.errors import StoreError
from manytune.examination.examiner import Examiner, Verdict
from manytune.server.adapters.store_threads import StoreThreads
from manytune.store.store import AdapterStore

_MOST_CHANGES = 5  # of a directory while somebody waits for its examination
_Found = TypeVar("_Found")


class NotExaminedError(Exception):
    """An adapter wasn't examined yet, and whoever needs it doesn't wait here.

    Attributes:
        digest: The version.
    """

    def __init__(self, digest: str) -> None:
        super().__init__(f"adapter {digest[:12]} wasn't examined yet")
        self.digest = digest


class Examined:
    """Verdicts by digest, each for one state of the adapter's files. Any number of threads may use it.

    Args:
        store: Where the adapters are kept.
        examiner: Examines them.
        max_bytes: Largest size of an adapter's tensors.
    """

    def __init__(self, store: AdapterStore, examiner: Examiner, *, max_bytes: int) -> None:
        self._store = store
        self._examiner = examiner
        self._max_bytes = max_bytes
        self._known: dict[str, tuple[object, Verdict]] = {}
        self._examining = threading.Lock()
        self._threads = StoreThreads()
        self._waiting = ThreadPoolExecutor(1, thread_name_prefix="examinations")

    def known(self, digest: str) -> Verdict:
        """What is known of a version.

        Raises:
            NotExaminedError: It wasn't examined in its present state.
        """
        state, verdict = self._known.get(digest, (None, None))
        if verdict is None or state != self._state(digest):
            raise NotExaminedError(digest)
        return verdict

    def examine(self, digest: str) -> Verdict:
        """The same; a version that isn't known is examined, which the caller waits for.

        Raises:
            UnreachableError: Its files can't be brought here now.
            StoreError: Nothing can be examined.
            ShortMemoryError: Nothing can be examined now.
        """
        with suppress(NotExaminedError):
            return self.known(digest)
        directory = self._store.fetch(digest)
        with self._examining:  # one at a time is examined anyway, and somebody may have asked for this one
            with suppress(NotExaminedError):
                return self.known(digest)
            state = self._state(digest)
            with self._store.description.naming_unreachable():
                verdict = self._examiner.examine(directory, root=self._store.root, max_bytes=self._max_bytes)
            self._known[digest] = (state, verdict)
            return verdict

    def forget(self, digest: str) -> None:
        """Examine a version again when it is needed next."""
        self._known.pop(digest, None)

    async def when_examined(
        self, call: Callable[[str], _Found], name: str, fetch: Callable[[str], object] | None = None
    ) -> _Found:
        """What `call(name)` returns, in another thread, once the adapter that it needs was examined.

        Args:
            call: Raises `NotExaminedError` if it needs one that wasn't.
            name: The adapter's name.
            fetch: Brings the files of the version with a digest here; None for the store's `fetch`.

        Raises:
            StoreError: Its files change all the time, or nothing can be examined.
            ShortMemoryError: Nothing can be examined now.
            Exception: Whatever the call raises.
        """
        for _ in range(_MOST_CHANGES):
            try:
                return await self._threads.run(partial(call, name))
            except NotExaminedError as error:
                # Apart from the examination, so that others needn't wait for it.
                await self._threads.run(partial(fetch or self._store.fetch, error.digest))
                await asyncio.wrap_future(self._waiting.submit(self.examine, error.digest))
        raise StoreError(f"the files of {name} are being changed. Try again when that is done.")

    def close(self) -> None:
        """Examine nothing more for those who wait."""
        self._waiting.shutdown(wait=False, cancel_futures=True)

    def _state(self, digest: str) -> object:
        return self._store.stamp(digest), self._store.files_state(digest)
