"""Which version of an adapter a name means now, read from the store without loading what the adapters run on."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from manytune.errors import ManytuneError
from manytune.store.labels import Labels
from manytune.store.remote.index import Index
from manytune.store.remote.journal import Journal
from manytune.store.remote.location import is_url, location_of
from manytune.store.remote.objects import Objects
from manytune.store.staging import Staging


class Names(Protocol):
    """The names of a store's adapters."""

    def digest_of(self, name: str) -> str | None:
        """The digest of the adapter that has a name; None if none has it, as far as is known."""

    async def follow(self, seconds: float) -> None:
        """Look for changes at intervals, until cancelled, if each request doesn't look itself."""


def names_in(store: str | Path) -> Names:
    """The names in a store, which is a directory or a URL of shared storage.

    Raises:
        StoreError: It is no URL of a bucket, or the driver isn't installed.
    """
    return SharedNames(str(store)) if is_url(store) else DirectoryNames(Path(store))


class DirectoryNames:
    """Those of a store in a directory, which each request reads.

    Args:
        store: The directory.
    """

    def __init__(self, store: Path) -> None:
        self._labels = Labels(store, Staging(store / "staging", store / ".lock"))

    def digest_of(self, name: str) -> str | None:
        """See `Names`."""
        try:
            return self._labels.named(name)
        except OSError:  # the replica that gets the request says what is wrong
            return None

    async def follow(self, seconds: float) -> None:
        """See `Names`."""


class SharedNames:
    """Those of a store on shared storage, as of the last look at its index: a request doesn't wait for the storage.

    Args:
        url: The store's.
    """

    def __init__(self, url: str) -> None:
        self._journal = Journal(Objects(location_of(url)))
        self._index = Index()

    def digest_of(self, name: str) -> str | None:
        """See `Names`."""
        return self._index.names.get(name)

    async def follow(self, seconds: float) -> None:
        """See `Names`. While the storage can't be reached, names mean what they did; the replicas say that it can't."""
        while True:
            with suppress(ManytuneError, OSError):
                self._index = await asyncio.to_thread(self._journal.newest, self._index)
            await asyncio.sleep(seconds)
