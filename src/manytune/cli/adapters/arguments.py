"""Arguments and options of `manytune adapters`, and the adapters that they name."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manytune.errors import ManytuneError

if TYPE_CHECKING:
    from manytune.store.store import AdapterStore

DEFAULT_STORE = "adapters"


def stored_names(context: typer.Context, incomplete: str) -> list[str]:
    """The names in the store that begin so, for a shell that completes a word; storage elsewhere isn't asked."""
    store = str(context.params.get("store") or os.environ.get("MANYTUNE_STORE") or DEFAULT_STORE)
    if "://" not in store:
        with suppress(ManytuneError, OSError):
            return [name for name in store_at(store).names() if name.startswith(incomplete)]
    return []


Store = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="MANYTUNE_STORE",
        help="The store's directory, or a URL such as s3://bucket/prefix; or set MANYTUNE_STORE.",
    ),
]


def _argument(what: str) -> Any:
    return typer.Argument(help=what, show_default=False, autocompletion=stored_names)


Adapter = Annotated[
    str, _argument("A name in the store, a digest or its first digits; or a run's or an adapter's directory.")
]
Adapters = Annotated[
    list[str],
    _argument("Names in the store, digests or their first digits; or runs' or adapters' directories."),
]
Kept = Annotated[str, _argument("A name in the store, a digest or its first digits.")]
ManyKept = Annotated[list[str], _argument("Names in the store, digests or their first digits.")]


def store_at(location: str) -> AdapterStore:
    """The store of a directory or a URL."""
    from manytune.store.opening import open_store

    return open_store(location)


def directory_of(adapter: str, store: str) -> Path:
    """The directory that an argument means: a run's or an adapter's own, or one in the store.

    Raises:
        StoreError: There is no such directory, or no such adapter in the store.
    """
    from manytune.store.references import adapter_directory

    return adapter_directory(adapter, store)


def name_of(adapter: str) -> str:
    """What to call an adapter that an argument means: its name in the store, or its directory's name."""
    from manytune.store.labels import NAME

    path = Path(adapter).expanduser()
    return adapter if NAME.fullmatch(adapter) and not path.is_dir() else path.name
