"""Arguments and options of `manytune adapters`, and the adapters that they name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from manytune.store.store import AdapterStore

DEFAULT_STORE = Path("adapters")
Store = Annotated[
    Path,
    typer.Option("--store", envvar="MANYTUNE_STORE", help="The store's directory; or set MANYTUNE_STORE."),
]
Adapter = Annotated[
    str,
    typer.Argument(
        help="A name in the store, a digest or its first digits; or a run's or an adapter's directory.",
        show_default=False,
    ),
]
Adapters = Annotated[
    list[str],
    typer.Argument(
        help="Names in the store, digests or their first digits; or runs' or adapters' directories.",
        show_default=False,
    ),
]
Kept = Annotated[
    str, typer.Argument(help="A name in the store, a digest or its first digits.", show_default=False)
]


def store_at(directory: Path) -> AdapterStore:
    """The store of a directory."""
    from manytune.store.store import AdapterStore

    return AdapterStore(directory)


def directory_of(adapter: str, store: Path) -> Path:
    """The directory that an argument means: a run's or an adapter's own, or one in the store.

    Raises:
        StoreError: There is no such directory, or no such adapter in the store.
    """
    from manytune.store.run_directory import adapter_at

    path = Path(adapter).expanduser()
    # A path that isn't there is reported as a path, a word as a name.
    if path.is_dir() or len(path.parts) > 1:
        return adapter_at(path)
    return store_at(store).path(adapter)
