"""What a store says of one of its adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from manytune.errors import StoreError
from manytune.store.manifest import Manifest


@dataclass(frozen=True)
class StoreEntry:
    """An adapter in a store.

    Attributes:
        digest: Identifies its content; see `digests.digest_of`.
        path: Its directory, which HF PEFT reads, too.
        manifest: What it says about itself.
        names: What it is called, sorted.
        tags: Its tags, sorted.
        nbytes: The size of its files.
        is_here: Whether its files are in that directory; those of a store elsewhere are when they were fetched.
    """

    digest: str
    path: Path
    manifest: Manifest
    names: tuple[str, ...]
    tags: tuple[str, ...]
    nbytes: int
    is_here: bool = True

    def __str__(self) -> str:
        return self.names[0] if self.names else self.digest[:12]


def read_entries(
    digests: Iterable[str],
    read: Callable[[str], StoreEntry | None],
    unreadable: Callable[[str, StoreError], None] | None,
) -> tuple[StoreEntry, ...]:
    """The adapters with some digests, by their first names; those without a name come last.

    Args:
        digests: Which.
        read: Reads one; None if another process has removed it meanwhile.
        unreadable: See `AdapterStore.entries`.
    """
    found = []
    for digest in digests:
        try:
            entry = read(digest)
        except StoreError as error:
            if unreadable is None:
                raise
            unreadable(digest, error)
            continue
        if entry is not None:
            found.append(entry)
    return tuple(sorted(found, key=lambda entry: (not entry.names, entry.names, entry.digest)))
