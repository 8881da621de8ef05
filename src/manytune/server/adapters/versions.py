"""The versions of a name, with their scores, and the way back to a former one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from manytune.errors import ManytuneError
from manytune.server.adapters.registry import AdapterRegistry
from manytune.server.http_errors import HttpError
from manytune.store.adapters import open_adapter
from manytune.store.folder import FolderStore
from manytune.store.name_history import NamedVersion


def versions_of(registry: AdapterRegistry, name: str) -> Iterator[dict[str, Any]]:
    """The versions of a name that are still in the store, the present one first.

    Raises:
        HttpError: There is no adapter of this name.
    """
    present = registry.resolve(name)
    for version in registry.store.versions(name):
        yield {
            "root": version.digest,
            "since": version.since,
            "current": version.digest == present,
            **_described(registry, version),
        }


def go_back(registry: AdapterRegistry, name: str, digest: str) -> str:
    """Have a name mean a version that it had before; returns the digest that it had until now.

    Raises:
        HttpError: It never had that version, or the store isn't the server's to change.
        StoreError: That version is damaged.
    """
    present = registry.resolve(name)
    if isinstance(registry.store, FolderStore):
        raise HttpError(
            409,
            "this server follows a folder, where only the present version of an adapter is; put the former files back "
            "there.",
            code="followed_folder",
        )
    if digest not in {version.digest for version in registry.store.versions(name)}:
        raise HttpError(
            404,
            f"{name} had no version {digest[:12]!r}, or it was removed; of a store on shared storage it isn't known. "
            "`manytune adapters alias DIGEST NAME --move` gives the name to any adapter.",
            code="unknown_version",
            param="root",
        )
    registry.examined.examine(digest).require()
    open_adapter(registry.store.directory(digest))
    registry.store.alias(digest, name, move=True)
    return present


def _described(registry: AdapterRegistry, version: NamedVersion) -> dict[str, Any]:
    """What a version says about itself, or why it can't be read."""
    nothing: dict[str, Any] = {"created": None, "method": None, "scores": {}}
    try:
        if registry.store.is_here(version.digest):
            registry.examined.examine(version.digest).require()
        manifest = registry.store.described(version.digest).manifest
    except (ManytuneError, OSError) as error:
        return {**nothing, "error": str(error)}
    scores = {key: value if math.isfinite(value) else None for key, value in manifest.scores.items()}
    return {"created": manifest.created, "method": manifest.method, "scores": scores, "error": None}
