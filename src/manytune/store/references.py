"""The directory of an adapter that is called by a path, or by a name, a digest or its first digits in a store."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from manytune.store.labels import NAME
from manytune.store.opening import open_store
from manytune.store.run_directory import adapter_at

DEFAULT_STORE = "adapters"


def usual_store() -> str:
    """`MANYTUNE_STORE`, or the directory `adapters`."""
    return os.environ.get("MANYTUNE_STORE") or DEFAULT_STORE


@dataclass(frozen=True)
class Referenced:
    """What a reference means.

    Attributes:
        directory: The adapter's directory; there may be nothing.
        digest: Its digest in the store; None for one that was named by its path.
    """

    directory: Path
    digest: str | None = None


def referenced(adapter: str, store: str | Path) -> Referenced:
    """What a reference means: a run's or an adapter's own directory, or an adapter in the store.

    Args:
        adapter: The reference.
        store: The store's directory, which needn't be there, or its URL, from which the adapter is fetched.

    Raises:
        StoreError: There is no such directory, or no such adapter in the store.
    """
    path = Path(adapter).expanduser()
    if path.is_dir():
        return Referenced(adapter_at(path))
    kept = open_store(store)
    # What isn't there is reported as a path if it can't be a name, or if its parent directory is there.
    is_path = path.is_file() or ("/" in adapter and path.parent.is_dir())
    if not NAME.fullmatch(adapter) or (is_path and adapter not in kept):
        return Referenced(adapter_at(path))
    return Referenced(kept.path(adapter), kept.resolve(adapter))


def adapter_directory(adapter: str, store: str | Path) -> Path:
    """The directory of what a reference means; see `referenced`."""
    return referenced(adapter, store).directory
