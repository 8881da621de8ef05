"""The adapters of a store on shared storage that were brought to this machine: whole, checked, and only so many.

They are in the cache directory, in the form of a store: `stores/ab12…/objects/ab/abcdef…`. What is here is private to
the user. A process that is killed while it fetches leaves nothing that counts.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from manytune.atomic import atomic_write, explained, flush_directory, flush_tree
from manytune.caches import cache_directory
from manytune.errors import LockedError, StoreError
from manytune.store.adapters import put_scores_on_card
from manytune.store.contents import CARD_NAME
from manytune.store.description import StoreDescription
from manytune.store.locking import locked
from manytune.store.manifest import MANIFEST_NAME, Manifest
from manytune.store.remote.index import Index, Kept, index_name, index_number
from manytune.store.remote.location import Location
from manytune.store.staging import Staging, seal

_log = logging.getLogger(__name__)
_BUDGET_GIB = 20.0
_IN_USE = 3600.0  # seconds after its last use for which an adapter isn't evicted
_PATIENCE = 600.0  # seconds for which another process that fetches the same is waited for

#: Writes one file of an adapter, checked, to a path.
Fetching = Callable[[str, Path], None]


class MirrorDescription(StoreDescription):
    """That of a copy of a store: what isn't here is fetched, so its absence says nothing of the store."""

    def require_reachable(self) -> None:
        """Nothing has to be here. Whether the storage can be reached shows when it is asked for something."""


class Mirror:
    """The directory on this machine for one store on shared storage. Any number of processes may use it.

    Args:
        location: The store.
    """

    def __init__(self, location: Location) -> None:
        self._location = location
        self._stores = cache_directory() / "stores"
        self.root = self._stores / hashlib.sha256(location.url().encode()).hexdigest()[:32]
        self.description = MirrorDescription(self.root)
        self._staging = Staging(self.root / "staging", self.root / ".lock")

    def directory(self, digest: str) -> Path:
        """The directory of an adapter, whether it is here or not."""
        return self.root / "objects" / digest[:2] / digest

    @contextmanager
    def filling(self) -> Iterator[Path]:
        """A new directory to fill, which is removed at the end."""
        self._create()
        with self._staging.filling() as staged:
            yield staged

    def bring(self, digest: str, kept: Kept, manifest: Manifest, fetching: Fetching) -> Path:
        """The directory of an adapter; its files are fetched if they aren't all here, by one process at a time.

        Args:
            digest: The adapter.
            kept: What the index says of it.
            manifest: Its manifest, checked.
            fetching: Fetches a file.

        Raises:
            StoreError: It is larger than all that may be kept here.
            DamagedError: A file isn't what was uploaded; nothing of it is kept then.
            WriteError: The disk is full, or isn't writable.
        """
        target = self.directory(digest)
        if not _is_complete(target, kept):
            self._create()
            with explained(self.root), self._alone(digest):
                if not _is_complete(target, kept):
                    self.remove(digest)  # what somebody has cut off or taken away
                    self._make_room(kept.nbytes)
                    self._fetch(digest, kept, manifest, fetching)
        self._bring_up_to_date(target, manifest)
        os.utime(target)  # those whose time is the oldest are evicted first
        return target

    def remove(self, digest: str) -> None:
        """Remove an adapter from this machine, if it is here."""
        if self.directory(digest).is_dir():
            with self._staging.lock():
                removed = self._staging.take(self.directory(digest))
            shutil.rmtree(removed, ignore_errors=True)

    # -- the index that was last seen

    def save(self, index: Index) -> None:
        """Keep an index, from which a server starts if the storage can't be reached."""
        if index.number:
            (self._create() / "index").mkdir(exist_ok=True)
            atomic_write(self.root / index_name(index.number), index.to_bytes())
            for number, other in self._saved():
                if number != index.number:
                    other.unlink(missing_ok=True)

    def saved(self) -> Index | None:
        """The newest index that was kept; None if there is none."""
        found = max(self._saved(), default=None)
        if found is None:
            return None
        number, file = found
        return Index.from_bytes(file.read_bytes(), number=number, where=str(file))

    # -- parts

    def _saved(self) -> list[tuple[int, Path]]:
        folder = self.root / "index"
        files = folder.iterdir() if folder.is_dir() else ()
        numbered = ((index_number(f"index/{file.name}"), file) for file in files)
        return [(number, file) for number, file in numbered if number is not None]

    def _create(self) -> Path:
        with explained(self.root):
            self._stores.parent.mkdir(parents=True, exist_ok=True)
            self._stores.mkdir(mode=0o700, exist_ok=True)
            self.root.mkdir(mode=0o700, exist_ok=True)
            if not self.description.is_there:
                self.description.write(mirror_of=str(self._location))
        return self.root

    @contextmanager
    def _alone(self, digest: str) -> Iterator[None]:
        """Wait for another process that fetches the same; if it takes too long, do it as well, which harms nothing."""
        locks = self.root / "locks"
        locks.mkdir(exist_ok=True)
        with ExitStack() as held:
            with suppress(LockedError):
                held.enter_context(locked(locks / digest[:2], patience=_PATIENCE))
            yield

    def _fetch(self, digest: str, kept: Kept, manifest: Manifest, fetching: Fetching) -> None:
        with self._staging.filling() as staged:
            for name in kept.files:
                if name != MANIFEST_NAME:  # the index's is newer
                    (staged / name).parent.mkdir(parents=True, exist_ok=True)
                    fetching(name, staged / name)
            (staged / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
            flush_tree(staged)
            seal(staged, manifest.files)
            target = self.directory(digest)
            with self._staging.lock():
                if not target.is_dir():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    staged.rename(target)
                    flush_directory(target.parent)

    def _bring_up_to_date(self, target: Path, manifest: Manifest) -> None:
        """Take over scores that were added to an adapter after it was fetched."""
        file = target / MANIFEST_NAME
        if file.read_text(encoding="utf-8") != manifest.to_json():
            with self._staging.lock():
                self._staging.put(file, manifest.to_json())
                put_scores_on_card(target, manifest)

    def _make_room(self, nbytes: int) -> None:
        """Remove the least recently used adapters of all stores until there is room for one more."""
        budget = _budget()
        if nbytes > budget:
            raise StoreError(
                f"{self._location}: an adapter has {nbytes:,} bytes, and at most {budget:,} are kept here. Allow more "
                "by the environment's MANYTUNE_STORE_CACHE_GIB."
            )
        here = _sizes(self._stores)
        excess = sum(size for _, size in here.values()) + nbytes - budget
        for directory, (used, size) in sorted(here.items(), key=lambda one: one[1][0]):
            if excess <= 0:
                return
            if time.time() - used < _IN_USE:
                _log.warning(
                    "adapters in use take more than the %s bytes that are to be kept here", f"{budget:,}"
                )
                return
            owner = directory.parents[2]
            staging = Staging(owner / "staging", owner / ".lock")
            with staging.lock():
                removed = staging.take(directory) if directory.is_dir() else None
            if removed is not None:
                shutil.rmtree(removed, ignore_errors=True)
            excess -= size


def _is_complete(directory: Path, kept: Kept) -> bool:
    """Whether an adapter's files are here, each with its size; contents are compared with hashes when they are read."""
    changing = (CARD_NAME, MANIFEST_NAME)  # with the scores that are added later
    try:
        return all(
            (directory / name).stat().st_size == file.size or name in changing
            for name, file in kept.files.items()
        )
    except (FileNotFoundError, NotADirectoryError):
        return False


def _sizes(stores: Path) -> Mapping[Path, tuple[float, int]]:
    """When each adapter here was last used, and its size."""
    found = {}
    for directory in stores.glob("*/objects/*/*"):
        try:
            size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
            found[directory] = (directory.stat().st_mtime, size)
        except FileNotFoundError:  # another process is removing it
            continue
    return found


def _budget() -> int:
    """How many bytes may be kept: `MANYTUNE_STORE_CACHE_GIB`, or 20 GiB.

    Raises:
        StoreError: It isn't a positive number.
    """
    configured = os.environ.get("MANYTUNE_STORE_CACHE_GIB", "")
    try:
        gib = float(configured) if configured else _BUDGET_GIB
        if 0 < gib < float("inf"):
            return int(gib * (1 << 30))
    except ValueError:
        pass
    raise StoreError(f"MANYTUNE_STORE_CACHE_GIB: expected a positive number of GiB, found {configured!r}.")
