"""A store of adapters on shared storage, of which this machine keeps what it has used.

    index/0000000042.json.gz      which adapters there are, their names, tags and manifests; see `index`
    objects/ab/abcdef…/UPLOAD/    an adapter's files

Reads see the index of the last `refresh` or write of this object; the first one reads it. So a server that has many
requests for names doesn't ask the storage for each, and a storage that can't be reached takes away nothing that is
here.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from manytune.errors import DamagedError, ManytuneError, StoreError, UnknownAdapterError, UnreachableError
from manytune.store.contents import State
from manytune.store.digests import digest_from_start, digest_of
from manytune.store.entry import StoreEntry, read_entries
from manytune.store.intake import Filling
from manytune.store.labels import check_name, check_tag, suggestions
from manytune.store.manifest import Manifest
from manytune.store.name_history import NamedVersion
from manytune.store.remote.failures import StorageError
from manytune.store.remote.index import Index, Kept, object_name
from manytune.store.remote.journal import Journal
from manytune.store.remote.location import Location, location_of
from manytune.store.remote.mirror import Mirror
from manytune.store.remote.objects import AbsentError, Objects
from manytune.store.remote.uploads import (
    is_uploaded,
    remove_abandoned,
    remove_upload,
    require_recent,
    upload_adapter,
)
from manytune.store.store import AdapterStore

_log = logging.getLogger(__name__)


class SharedStore(AdapterStore):
    """Adapters in a bucket, which any number of machines may use at once. Nothing is asked of it before it is needed.

    Args:
        url: Such as `s3://bucket/prefix`.

    Raises:
        StoreError: It is no URL of a bucket, or the driver isn't installed.
    """

    def __init__(self, url: str | Path | Location) -> None:
        self.location = url if isinstance(url, Location) else location_of(url)
        self._mirror = Mirror(self.location)
        super().__init__(self._mirror.root)
        self.address = str(self.location)
        self.description = self._mirror.description
        self._objects = Objects(self.location)
        self._journal = Journal(self._objects)
        self._index: Index | None = None
        self._is_away = False

    def __str__(self) -> str:
        return str(self.location)

    # -- reading

    def refresh(self) -> None:
        """Read the index again, if it has changed.

        Raises:
            UnreachableError: The storage can't be reached; what was read before stays.
            StoreError: There is no bucket, or it can't be read with these credentials.
        """
        try:
            self._take(self._journal.newest(self._index))
        except StoreError as error:
            self.unreachable, self._is_away = str(error), isinstance(error, UnreachableError)
            raise

    def refresh_or_begin_with_saved(self) -> None:
        """Read the index; if the storage can't be reached, that which this machine saw last.

        Raises:
            UnreachableError: It can't be reached, and this machine has never seen it.
            StoreError: There is no bucket, or it can't be read with these credentials.
        """
        try:
            self.refresh()
        except UnreachableError as error:
            self._index = self._mirror.saved()
            if self._index is None:
                raise
            _log.warning("%s Until then what is on this machine is used.", error)

    def require_there(self) -> None:
        """See that the storage can be read; an empty prefix is an empty store."""
        self._known()

    def resolve(self, reference: str) -> str:
        """See `AdapterStore.resolve`."""
        return self._find(self._known(), reference)

    def fetch(self, digest: str) -> Path:
        """The directory of an adapter on this machine, with its files, which are fetched and checked if need be.

        Raises:
            UnknownAdapterError: It isn't in the store.
            UnreachableError: It isn't on this machine, and the storage can't be reached, or doesn't give it.
            DamagedError: A file in the storage isn't what was uploaded.
        """
        kept = self._kept(digest)
        if self._is_away and not self.is_here(digest):  # `refresh` finds out when it is back
            raise UnreachableError(self.unreachable)
        try:
            return self._bring_present(digest, kept)
        except StorageError as error:  # credentials that have expired, say: not the adapter's fault
            raise UnreachableError(str(error)) from error

    def is_here(self, digest: str) -> bool:
        """See `AdapterStore.is_here`."""
        return self.directory(digest).is_dir()

    def entry(self, reference: str) -> StoreEntry:
        """See `AdapterStore.entry`."""
        digest = self.resolve(reference)
        return self._entry_of(digest, self._kept(digest), self._known().names_of(digest))

    def entries(
        self, *, tag: str | None = None, unreadable: Callable[[str, StoreError], None] | None = None
    ) -> tuple[StoreEntry, ...]:
        """See `AdapterStore.entries`."""
        index = self._known()
        names = index.names_by_digest()
        digests = (digest for digest, kept in index.adapters.items() if tag is None or tag in kept.tags)
        return read_entries(
            digests,
            lambda digest: self._entry_of(digest, index.adapters[digest], names.get(digest, ())),
            unreadable,
        )

    def names(self) -> dict[str, str]:
        """See `AdapterStore.names`."""
        return dict(sorted(self._known().names.items()))

    def versions(self, name: str) -> list[NamedVersion]:
        """The present version alone: which others had the name isn't kept."""
        present = self._known().names.get(name)
        return [] if present is None else [NamedVersion(present, None)]

    def tags(self) -> Mapping[str, Collection[str]]:
        """See `AdapterStore.tags`."""
        return {digest: sorted(kept.tags) for digest, kept in self._known().adapters.items()}

    def has_name(self, name: str) -> bool:
        """See `AdapterStore.has_name`."""
        return name in self._known().names

    def described(self, digest: str, names: Iterable[str] = ()) -> StoreEntry:
        """See `AdapterStore.described`."""
        kept = self._known().adapters.get(digest)
        if kept is None:
            raise FileNotFoundError(self.location.url(f"objects/{digest[:2]}/{digest}"))
        return self._entry_of(digest, kept, names)

    def stamp(self, digest: str) -> Hashable | None:
        """See `AdapterStore.stamp`."""
        kept = self._known().adapters.get(digest)
        return None if kept is None else (kept.upload, kept.revision)

    def files_state(self, digest: str) -> State:
        """Never changes: what is in the storage isn't written again, and what is here may be fetched again."""
        return ()

    # -- writing

    def alias(self, reference: str, name: str, *, move: bool = False) -> None:
        """See `AdapterStore.alias`."""
        check_name(name)
        self._change(
            lambda index: index.with_name(name, self._find(index, reference), move=move, where=str(self))
        )

    def unalias(self, name: str) -> None:
        """See `AdapterStore.unalias`."""

        def change(index: Index) -> Index:
            if name not in index.names:
                raise self._unknown(name)
            return index.without_name(name)

        self._change(change)

    def tag(self, reference: str, *tags: str) -> None:
        """See `AdapterStore.tag`."""
        for tag in tags:
            check_tag(tag)
        self._change(lambda index: index.with_tags(self._find(index, reference), add=tags))

    def untag(self, reference: str, *tags: str) -> None:
        """See `AdapterStore.untag`."""
        self._change(lambda index: index.with_tags(self._find(index, reference), take=tags))

    def add_scores(self, reference: str, scores: Mapping[str, float]) -> None:
        """See `AdapterStore.add_scores`."""

        def change(index: Index) -> Index:
            digest = self._find(index, reference)
            kept = index.adapters[digest]
            manifest = kept.read_manifest(digest, str(self))
            changed = dataclasses.replace(manifest, scores={**manifest.scores, **scores})
            return index.with_adapter(digest, kept.with_manifest(changed))

        self._change(change)

    def remove(self, reference: str) -> None:
        """See `AdapterStore.remove`. Machines that have fetched it keep their copies until they need the room."""
        removed: dict[str, Kept] = {}

        def change(index: Index) -> Index:
            removed.clear()
            digest = self._find(index, reference)
            removed[digest] = index.adapters[digest]
            return index.without_adapter(digest)

        self._change(change)
        for digest, kept in removed.items():
            remove_upload(self._objects, digest, kept)
            self._mirror.remove(digest)
        remove_abandoned(self._objects, self._known())

    # -- parts

    def _known(self) -> Index:
        if self._index is None:
            self.refresh()
        assert self._index is not None
        return self._index

    def _take(self, index: Index) -> None:
        if index is not self._index:
            try:
                self._mirror.save(index)
            except OSError as error:  # it is needed only by a server that starts while the storage is away
                _log.warning("the index isn't kept on this machine: %s", error)
        self._index, self.unreachable, self._is_away = index, None, False

    def _kept(self, digest: str) -> Kept:
        kept = self._known().adapters.get(digest)
        if kept is None:
            raise self._unknown(digest)
        return kept

    def _entry_of(self, digest: str, kept: Kept, names: Iterable[str]) -> StoreEntry:
        path, where = (
            self.directory(digest),
            self.location.url(f"objects/{digest[:2]}/{digest}/{kept.upload}"),
        )
        manifest = kept.read_manifest(digest, where)
        return StoreEntry(
            digest, path, manifest, tuple(names), tuple(sorted(kept.tags)), kept.nbytes, is_here=path.is_dir()
        )

    def _bring_present(self, digest: str, kept: Kept) -> Path:
        """`_bring`, once more if somebody has replaced the adapter's objects meanwhile."""
        try:
            return self._bring(digest, kept)
        except AbsentError as error:
            self.refresh()
            present = self._kept(digest)  # else it was removed meanwhile
            if present.upload == kept.upload:
                raise DamagedError(
                    f"{error}: the object is missing. Add the adapter again from its source."
                ) from None
            return self._bring(digest, present)

    def _bring(self, digest: str, kept: Kept) -> Path:
        manifest = self._entry_of(digest, kept, ()).manifest

        def fetch(name: str, target: Path) -> None:
            file = kept.files[name]
            self._objects.download(
                object_name(digest, kept.upload, name), target, size=file.size, sha256=file.sha256
            )

        return self._mirror.bring(digest, kept, manifest, fetch)

    def _find(self, index: Index, reference: str) -> str:
        """The digest that a reference means in an index."""
        if reference in index.names:
            return index.names[reference]
        if reference in index.adapters:
            return reference
        digest = digest_from_start(reference, lambda: index.adapters)
        if digest is not None:
            return digest
        raise self._unknown(reference)

    def _change(self, change: Callable[[Index], Index]) -> None:
        self._take(self._journal.change(change, known=self._index))

    def _add(
        self, fill: Filling, name: str | None, tags: Collection[str], *, move: bool, is_tried: bool
    ) -> StoreEntry:
        """The adapter is in the storage, and its name in the index, once this returns."""
        self._objects.require_writable()
        self.refresh()
        with self._mirror.filling() as staged:
            manifest = fill(staged)
            digest = digest_of(manifest)

            def entered(index: Index, uploaded: Kept | None) -> Index:
                if name is not None:
                    index = index.with_name(name, digest, move=move, where=str(self))
                kept = index.adapters.get(digest, uploaded)
                if kept is None:
                    raise _NotUploadedError
                joined = kept.read_manifest(digest, str(self)).joined(manifest, is_tried=is_tried)
                return index.with_adapter(digest, kept.with_manifest(joined)).with_tags(digest, add=tags)

            self._upload(digest, staged, manifest, entered)
        return self.entry(digest)

    def _upload(
        self,
        digest: str,
        staged: Path,
        manifest: Manifest,
        entered: Callable[[Index, Kept | None], Index],
    ) -> None:
        """Enter an adapter in the index, after uploading it if nobody has, or if some of it is missing."""
        lost = self._known().adapters.get(digest)
        if lost is None or is_uploaded(self._objects, digest, lost):
            lost = None
            with suppress(_NotUploadedError):
                self._change(lambda index: entered(index, None))
                return
        uploaded = upload_adapter(self._objects, digest, staged, manifest)

        def enter(index: Index) -> Index:
            require_recent(uploaded, self._objects)
            return entered(index.with_upload(digest, lost, uploaded), uploaded)

        try:
            self._change(enter)
        except UnreachableError:  # it may be in the index
            raise
        except ManytuneError:
            remove_upload(self._objects, digest, uploaded)
            raise
        if self._kept(digest).upload != uploaded.upload:  # another writer has added it meanwhile
            remove_upload(self._objects, digest, uploaded)
        elif lost is not None:
            remove_upload(self._objects, digest, lost)

    def _unknown(self, reference: str) -> UnknownAdapterError:
        names = [] if self._index is None else sorted(self._index.names)
        return UnknownAdapterError(
            f"{self}: there is no adapter {reference!r}. {suggestions(reference, names)}"
        )


class _NotUploadedError(Exception):
    """An adapter is in no index yet."""
