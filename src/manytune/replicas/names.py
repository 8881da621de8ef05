"""Which version of an adapter a name means now, read from the store without loading what the adapters run on."""

from __future__ import annotations

from pathlib import Path

from manytune.store.labels import Labels
from manytune.store.staging import Staging


class Names:
    """The names of a store's adapters.

    Args:
        store: The store's directory.
    """

    def __init__(self, store: str | Path) -> None:
        root = Path(store)
        self._labels = Labels(root, Staging(root / "staging", root / ".lock"))

    def digest_of(self, name: str) -> str | None:
        """The digest of the adapter that has a name; None if none has it."""
        try:
            return self._labels.named(name)
        except OSError:  # the replica that gets the request says what is wrong
            return None
