"""What names mean: the store is asked each time, and while it can't be reached, what they meant last counts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from manytune.errors import ManytuneError, UnknownAdapterError, UnreachableError
from manytune.server.http_errors import model_not_found
from manytune.store.labels import NAME
from manytune.store.store import AdapterStore

_log = logging.getLogger(__name__)


class Names:
    """Names to digests. Any number of threads may use it.

    Args:
        store: Where the adapters are kept.
        is_loaded: Whether a version, given by its digest, is served without the store.
        base_name: The plain base's name in requests; an adapter of this name isn't accessible.

    Attributes:
        unreachable: Why the store couldn't be read when it was last followed; None if it could.
    """

    def __init__(self, store: AdapterStore, is_loaded: Callable[[str], bool], *, base_name: str) -> None:
        self._store = store
        self._is_loaded = is_loaded
        self._base_name = base_name
        self._last: dict[str, str] = {}
        self.unreachable = store.unreachable

    def resolve(self, name: str) -> str:
        """The digest of the version that a name means now; while the store can't be reached, that of the one loaded.

        Raises:
            HttpError: It isn't the name of an adapter in the store.
            UnreachableError: The store can't be reached, and the adapter isn't loaded.
        """
        if not NAME.fullmatch(name):
            raise model_not_found(name)
        try:
            with self._store.description.naming_unreachable():
                found = self._found(name)
        except UnreachableError:
            known = self._last.get(name)
            if known is None or not self._is_loaded(known):
                raise
            return known
        except UnknownAdapterError:
            self._last.pop(name, None)
            raise model_not_found(name) from None
        self._last[name] = found
        return found

    def all(self) -> dict[str, str]:
        """The digest of each name.

        Raises:
            UnreachableError: The store can't be reached.
        """
        with self._store.description.naming_unreachable():
            names = self._store.names()
        self._store.description.require_reachable()  # else it would look empty
        return {name: digest for name, digest in names.items() if name != self._base_name}

    def follow(self) -> dict[str, str]:
        """The same, with what others have changed in the store. The log says when that begins to fail, and ends to.

        Raises:
            UnreachableError: The store can't be reached.
            StoreError: It can't be read.
        """
        try:
            self._store.refresh()
            names = self.all()
        except (ManytuneError, OSError) as error:
            if self.unreachable is None:
                _log.warning("adapters that are on this machine are served, and no new version: %s", error)
            self.unreachable = str(error)
            raise
        if self.unreachable is not None:
            _log.warning("the store can be read again")
        self.unreachable = None
        return names

    def _found(self, name: str) -> str:
        if not self._store.has_name(name):
            raise UnknownAdapterError(name)
        return self._store.resolve(name)


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, list[str]]:
    """The names that were added, updated and removed. If there are any, they are in the log, too."""
    changed = {
        "added": sorted(now.keys() - before.keys()),
        "updated": sorted(name for name in now.keys() & before.keys() if now[name] != before[name]),
        "removed": sorted(before.keys() - now.keys()),
    }
    if any(changed.values()):
        _log.info("the store has changed", extra={"fields": changed})
    return changed
