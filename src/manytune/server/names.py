"""What names mean: the store is asked each time, and while it can't be reached, what they meant last counts."""

from __future__ import annotations

from manytune.errors import UnknownAdapterError, UnreachableError
from manytune.server.http_errors import model_not_found
from manytune.store.cache import AdapterCache
from manytune.store.labels import NAME


class Names:
    """Names to digests. Any number of threads may use it.

    Args:
        cache: The adapters in memory, and the store that they come from.
    """

    def __init__(self, cache: AdapterCache) -> None:
        self._cache = cache
        self._store = cache.store
        self._last: dict[str, str] = {}

    def resolve(self, name: str) -> str:
        """The digest of the version that a name means now; while the store can't be reached, that of the one in memory.

        Raises:
            HttpError: It isn't the name of an adapter in the store.
            UnreachableError: The store can't be reached, and the adapter isn't in memory.
        """
        if not NAME.fullmatch(name):
            raise model_not_found(name)
        try:
            with self._store.description.naming_unreachable():
                found = self._found(name)
        except UnreachableError:
            known = self._last.get(name)
            if known is None or known not in self._cache.resident:
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
        return names

    def _found(self, name: str) -> str:
        link = self._store.labels.file(name)
        if link.is_symlink() or not link.is_file():
            raise UnknownAdapterError(name)
        return self._store.resolve(name)
