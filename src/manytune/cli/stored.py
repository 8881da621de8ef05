"""Adapters that arguments name: in the store, or a directory of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from manytune.store.store import AdapterStore


def store_at(directory: Path) -> AdapterStore:
    """The store of a directory."""
    from manytune.store.store import AdapterStore

    return AdapterStore(directory)


def directory_of(adapter: str, store: Path) -> Path:
    """The directory that an argument means: a run's or an adapter's own, or one in the store."""
    from manytune.store.run_directory import adapter_at

    path = Path(adapter).expanduser()
    # A path that isn't there is reported as a path, a word as a name.
    if path.is_dir() or len(path.parts) > 1:
        return adapter_at(path)
    return store_at(store).path(adapter)
