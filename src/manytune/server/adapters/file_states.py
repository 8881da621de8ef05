"""Whether the files of adapters in memory are still those that were read."""

from __future__ import annotations

import threading
from collections.abc import Collection

from manytune.store.contents import State
from manytune.store.store import AdapterStore


class FileStates:
    """The states of adapters' files before they were read, by digest. Any number of threads may use it.

    Args:
        store: Where the adapters are kept.
    """

    def __init__(self, store: AdapterStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._known: dict[str, State] = {}

    def now(self, digest: str) -> State:
        """The present state of an adapter's files."""
        return self._store.files_state(digest)

    def remember(self, digest: str, state: State) -> None:
        """Note in what state an adapter was read, unless it is in memory already."""
        with self._lock:
            self._known.setdefault(digest, state)

    def keep(self, digests: Collection[str]) -> None:
        """Forget all but these."""
        with self._lock:
            self._known = {digest: state for digest, state in self._known.items() if digest in digests}

    def changed(self) -> list[str]:
        """The adapters whose files aren't in the state in which they were read; each is named once."""
        with self._lock:
            found = []
            for digest, before in self._known.items():
                state = self.now(digest)
                if (
                    state != before and self._store.directory(digest).is_dir()
                ):  # else it was removed from the store
                    found.append(digest)
                    self._known[digest] = state
            return found
