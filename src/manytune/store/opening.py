"""A store of adapters where a command or a program says that it is: a directory, or a URL."""

from __future__ import annotations

from pathlib import Path

from manytune.store.remote.location import local_directory
from manytune.store.store import AdapterStore


def open_store(location: str | Path) -> AdapterStore:
    """The store in a directory, or on shared storage.

    Args:
        location: A directory, a `file://` URL of one, or a URL such as `s3://bucket/prefix`, `gs://bucket/prefix` or
            `az://container/prefix`.

    Raises:
        StoreError: The directory holds something else, it is no such URL, or the driver isn't installed.
    """
    directory = local_directory(location)
    if directory is not None:
        return AdapterStore(directory)
    from manytune.store.remote.store import SharedStore

    return SharedStore(location)
