"""What a store says of one of its adapters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
