"""A store of adapters where a command or a program says that it is: a directory, or a URL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from manytune.store.folder import adapters_in, require_adapters_or_nothing, store_at
from manytune.store.remote.location import local_directory
from manytune.store.store import AdapterStore

if TYPE_CHECKING:
    from manytune.store.base import Base
    from manytune.store.remote.store import SharedStore


def open_store(location: str | Path) -> AdapterStore:
    """The store in a directory, or on shared storage.

    Args:
        location: A directory, a `file://` URL of one, or a URL such as `s3://bucket/prefix`, `gs://bucket/prefix` or
            `az://container/prefix`.

    Raises:
        StoreError: The directory holds something else, it is no such URL, or the driver isn't installed.
    """
    directory = local_directory(location)
    return _shared(location) if directory is None else AdapterStore(directory)


class ServedPlace:
    """Where the adapters of a server are: a store, a directory of adapters, or shared storage, which is read at once.

    Args:
        location: As for `open_store`; a directory may also have an adapter in each subdirectory, or nothing.

    Raises:
        StoreError: There is something else, or shared storage can't be read and this machine has never seen it.
    """

    def __init__(self, location: str | Path) -> None:
        self._folder = local_directory(location)
        self._store: SharedStore | None = None
        if self._folder is None:
            self._store = _shared(location)
            self._store.refresh_or_begin_with_saved()
        else:
            require_adapters_or_nothing(self._folder)

    def has_name(self, name: str) -> bool:
        """Whether an adapter there is called so."""
        if self._folder is not None:
            return name in adapters_in(self._folder)
        return self._store is not None and self._store.has_name(name)

    def open(self, base: Base, examine: Callable[[Path], None] | None = None) -> AdapterStore:
        """The adapters as a store that was refreshed; see `folder.store_at`."""
        if self._store is not None:
            return self._store
        assert self._folder is not None
        store = store_at(self._folder, base, examine)
        store.refresh()
        return store


def _shared(location: str | Path) -> SharedStore:
    from manytune.store.remote.store import SharedStore

    return SharedStore(location)
