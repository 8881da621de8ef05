"""A directory of adapters in which each is kept once, under its digest.

    store.json                the format's version
    objects/ab/abcdef…/       an adapter: HF PEFT's files and manifest.json; only its scores ever change
    names/summaries           the digest of the adapter that has the name; user/adapter is in names/user%2Fadapter
    tags/production/abcdef…   empty: the adapter has the tag
    staging/                  adapters that are being added or removed
    .lock                     held while an adapter, a name or a tag is added or removed

What is added is renamed into place; a name is added after its adapter and removed before it. So readers need no lock
and see whole adapters only, whenever a writer is killed. What it leaves in `staging` is removed by the next writer.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from manytune.atomic import clean_leftovers, explained, flush_directory, flush_tree, make_directory
from manytune.errors import DamagedError, ManytuneError, StoreError, UnknownAdapterError
from manytune.methods.checkpoint.files import TENSORS_NAME
from manytune.methods.config import CONFIG_NAME
from manytune.store.adapters import open_adapter, put_scores_on_card
from manytune.store.contents import State, states_of
from manytune.store.description import NO_STORE, StoreDescription
from manytune.store.digests import digest_from_start, digest_of
from manytune.store.entry import StoreEntry, read_entries
from manytune.store.intake import Filling, gather
from manytune.store.labels import Labels, check_name, check_tag
from manytune.store.manifest import MANIFEST_NAME, Manifest
from manytune.store.name_history import NamedVersion
from manytune.store.remote.location import is_url
from manytune.store.staging import Staging, seal

if TYPE_CHECKING:
    from manytune.store.base import Base


class AdapterStore:
    """Adapters by content, name and tag. Any number of threads and processes may use one directory at once.

    Args:
        root: The store's directory; made by the first `add`. A URL is for `open_store`.

    Attributes:
        address: What another process opens the same store by: its directory, or its URL.
        description: What says that there is a store, and whether it can be reached.
        unreachable: Why a store elsewhere couldn't be read at its last `refresh`; None for a directory.

    Raises:
        StoreError: The directory holds something else, or a store of a newer format.
    """

    unreachable: str | None = None

    def __init__(self, root: str | Path) -> None:
        if is_url(root):
            raise StoreError(f"{root}: expected a directory; manytune.store.opening.open_store opens a URL.")
        self.root = Path(root).expanduser()
        self.address = str(self.root)
        self._staging = Staging(self.root / "staging", self.root / ".lock")
        self._labels = Labels(self.root, self._staging)
        self.description = StoreDescription(self.root)

    # -- reading

    def require_there(self) -> None:
        """See that there is a store; see `StoreDescription.require`."""
        self.description.require()

    def resolve(self, reference: str) -> str:
        """The digest of the adapter that is called by a name, a digest, or the first 6 or more digits of one.

        Raises:
            UnknownAdapterError: No adapter is called so, or more than one.
        """
        named = self._labels.named(reference)
        if named is not None and self.directory(named).is_dir():
            return named
        shard = self.root / "objects" / reference[:2]
        digest = digest_from_start(reference, lambda: (path.name for path in shard.glob(f"{reference}*")))
        if digest is not None:
            return digest
        raise self._unknown(reference)

    def directory(self, digest: str) -> Path:
        """The directory of the adapter with a digest, whether it is there or not."""
        return self.root / "objects" / digest[:2] / digest

    def fetch(self, digest: str) -> Path:
        """The directory of the adapter with a digest; a store elsewhere brings its files here first."""
        return self.directory(digest)

    def is_here(self, digest: str) -> bool:
        """Whether an adapter's files need no `fetch`."""
        return True

    def path(self, reference: str) -> Path:
        """The directory of an adapter, with its files; see `resolve`.

        Raises:
            DamagedError: What its manifest says of it isn't what was added.
        """
        directory = self.fetch(digest := self.resolve(reference))
        with suppress(FileNotFoundError):
            self._manifest(digest)
        return directory

    def __contains__(self, reference: str) -> bool:
        with suppress(UnknownAdapterError):
            return bool(self.resolve(reference))
        return False

    def entry(self, reference: str) -> StoreEntry:
        """One adapter; see `resolve`."""
        entry = self._entry(self.resolve(reference), self._labels.names(), self._labels.tags())
        if entry is None:
            raise self._unknown(reference)
        return entry

    def entries(
        self, *, tag: str | None = None, unreadable: Callable[[str, StoreError], None] | None = None
    ) -> tuple[StoreEntry, ...]:
        """All adapters, or those with a tag, by their first names; those without a name come last.

        Args:
            tag: The tag.
            unreadable: Called with the digest and error of each one that can't be read and isn't listed; None raises.
        """
        names, tags = self._labels.names(), self._labels.tags()
        digests = (digest for digest in self._digests() if tag is None or tag in tags.get(digest, ()))
        return read_entries(digests, lambda digest: self._entry(digest, names, tags), unreadable)

    def has_name(self, name: str) -> bool:
        """Whether an adapter has a name. A link in the place of a name's file leads anywhere, and is none."""
        return self._labels.has_name(name) and not self._labels.file(name).is_symlink()

    def described(self, digest: str, names: Iterable[str] = ()) -> StoreEntry:
        """The adapter with a digest as its manifest describes it, without looking for its names and tags.

        Raises:
            FileNotFoundError: It isn't there.
            StoreError: Its manifest can't be read, or isn't the one that was added.
        """
        path, manifest = self.directory(digest), self._manifest(digest)
        nbytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return StoreEntry(digest, path, manifest, tuple(names), (), nbytes)

    def stamp(self, digest: str) -> Hashable | None:
        """Changes if an adapter's manifest does; None if it isn't there."""
        return states_of(self.directory(digest), [MANIFEST_NAME])[0]

    def files_state(self, digest: str) -> State:
        """Changes if somebody writes into an adapter's files."""
        return states_of(self.directory(digest), (CONFIG_NAME, TENSORS_NAME))

    def names(self) -> dict[str, str]:
        """All names, sorted, with the digests of the adapters that have them."""
        found = ((name, digest) for digest, names in self._labels.names().items() for name in names)
        return dict(sorted(found))

    def versions(self, name: str) -> list[NamedVersion]:
        """The versions that have and had a name and are still here, the present one first; none if it isn't taken."""
        return [one for one in self._labels.versions(name) if self.directory(one.digest).is_dir()]

    def tags(self) -> Mapping[str, Collection[str]]:
        """All tags by the digests of the adapters that have them."""
        return self._labels.tags()

    def refresh(self) -> None:
        """Take over changes of what the store follows. A store of its own follows nothing.

        Raises:
            UnreachableError: What it follows can't be reached; what was taken over before stays.
            StoreError: It can't be read.
        """

    # -- writing

    def add(
        self,
        source: str | Path,
        *,
        name: str | None = None,
        move: bool = False,
        tags: Iterable[str] = (),
        base: Base | None = None,
        base_tokenizer: bool = False,
    ) -> StoreEntry:
        """Put a copy of an adapter into the store. One with the same content is kept once, with the scores of both.

        A copy that was damaged there is replaced.

        Args:
            source: A run, an adapter's directory, or a checkpoint of HF PEFT.
            name: What to call it; None for its digest alone.
            move: Take the name from another adapter that has it.
            tags: Tags to give it.
            base: Its base, to be checked; needed for a checkpoint of HF PEFT.
            base_tokenizer: Use the base's tokenizer and chat template even if others lie next to the adapter.

        Raises:
            StoreError: There is no adapter; the name can't be one; the base is missing; or the adapter comes with
                another tokenizer than its base's.
            DamagedError: A file of the adapter is missing, damaged, or a pickle.
            NameTakenError: The name is taken.
            BaseMismatchError: The adapter was trained on another base.
            ConfigError: manytune doesn't implement its options.
            WriteError: The disk is full or read-only, or permission is missing.
        """
        tags = tuple(tags)
        if name is not None:
            check_name(name)
        for tag in tags:
            check_tag(tag)

        def fill(staged: Path) -> Manifest:
            return gather(Path(source).expanduser(), staged, base, base_tokenizer=base_tokenizer)

        return self._add(fill, name, tags, move=move, is_tried=base is not None)

    def alias(self, reference: str, name: str, *, move: bool = False) -> None:
        """Call an adapter by one more name.

        Args:
            reference: The adapter.
            name: The name.
            move: Take the name from another adapter that has it.

        Raises:
            UnknownAdapterError: There is no such adapter.
            NameTakenError: The name is taken.
            StoreError: The name can't be one.
        """
        check_name(name)
        with self._lock():
            digest = self.resolve(reference)
            if not move:
                self._labels.require_free(name, digest)
            self._labels.put_name(name, digest)

    def unalias(self, name: str) -> None:
        """Forget a name; the adapter stays.

        Raises:
            UnknownAdapterError: There is no such name.
        """
        with self._lock():
            if not self._labels.has_name(name):
                raise self._unknown(name)
            self._labels.take_names(name)

    def tag(self, reference: str, *tags: str) -> None:
        """Give an adapter tags.

        Raises:
            UnknownAdapterError: There is no such adapter.
            StoreError: A tag can't be one.
        """
        for tag in tags:
            check_tag(tag)
        with self._lock():
            digest = self.resolve(reference)
            for tag in tags:
                self._labels.put_tag(tag, digest)

    def untag(self, reference: str, *tags: str) -> None:
        """Take tags from an adapter; those that it doesn't have are skipped."""
        with self._lock():
            digest = self.resolve(reference)
            for tag in tags:
                self._labels.take_tag(tag, digest)

    def add_scores(self, reference: str, scores: Mapping[str, float]) -> None:
        """Add scores to those that an adapter has; a score of the same name is replaced."""
        with self._lock():
            self._put_manifest(
                self.resolve(reference),
                lambda kept: dataclasses.replace(kept, scores={**kept.scores, **scores}),
            )

    def remove(self, reference: str) -> None:
        """Remove an adapter with all its names and tags. A process that has its files open keeps them.

        Raises:
            UnknownAdapterError: There is no such adapter.
        """
        with self._lock():
            removed = self._taken(self.resolve(reference))
        shutil.rmtree(removed, ignore_errors=True)

    # -- parts

    def _add(
        self, fill: Filling, name: str | None, tags: Collection[str], *, move: bool, is_tried: bool
    ) -> StoreEntry:
        """Add what `fill` puts into an empty directory. What it is to be called is valid; see `Manifest.joined`."""
        self._create()
        with self._staging.filling() as staged:
            manifest = fill(staged)
            flush_tree(staged)
            seal(staged, manifest.files)
            digest = digest_of(manifest)
            with self._lock():
                if name is not None and not move:
                    self._labels.require_free(name, digest)
                is_new = not self._is_whole(digest)
                if is_new:
                    self._put_files(digest, staged)
                else:
                    self._put_manifest(digest, lambda kept: kept.joined(manifest, is_tried=is_tried))
                if name is not None:
                    self._labels.put_name(name, digest)
                for tag in tags:
                    self._labels.put_tag(tag, digest)
        if not is_new:
            return self.entry(digest)
        # The same, without looking through all names and tags for those of an adapter that was just added.
        names = {digest: [name]} if name is not None else {}
        return self._entry(digest, names, {digest: sorted(set(tags))}) or self.entry(digest)

    def _create(self) -> None:
        with explained(self.root):
            make_directory(self.root)
        with self._staging.lock():
            clean_leftovers(self.root)
            if not self.description.is_there:
                # Before anything else: a directory that has anything in it, but not this, isn't a store.
                self.description.write()
            for part in ("objects", "names", "tags", "staging"):
                make_directory(self.root / part)

    def _lock(self) -> AbstractContextManager[None]:
        self.description.require()
        return self._staging.lock()

    def _digests(self) -> Iterator[str]:
        objects = self.root / "objects"
        for shard in sorted(objects.iterdir()) if objects.is_dir() else ():
            if shard.is_dir():
                yield from sorted(path.name for path in shard.iterdir())

    def _entry(
        self, digest: str, names: Mapping[str, list[str]], tags: Mapping[str, list[str]]
    ) -> StoreEntry | None:
        try:
            found = self.described(digest, names.get(digest, ()))
        except FileNotFoundError:
            return None
        return dataclasses.replace(found, tags=tuple(tags.get(digest, ())))

    def _manifest(self, digest: str) -> Manifest:
        """What an adapter says about itself, which must be what was added under its digest."""
        file = self.directory(digest) / MANIFEST_NAME
        manifest = Manifest.read(file)
        if digest_of(manifest) != digest:
            raise DamagedError(
                f"{file}: the manifest isn't the one that was added with the adapter; its digest differs. Add the "
                "adapter again from its source."
            )
        return manifest

    def _is_whole(self, digest: str) -> bool:
        """Whether an adapter is there as it was added."""
        try:
            open_adapter(self.directory(digest))
            self._manifest(digest)
        except (ManytuneError, FileNotFoundError):
            return False
        return True

    def _taken(self, digest: str) -> Path:
        """An adapter, without names and tags, where it is removed; with the lock in hand."""
        self._labels.take_names(*self._labels.names().get(digest, ()))
        for tag in self._labels.tags().get(digest, ()):
            self._labels.take_tag(tag, digest)
        return self._staging.take(self.directory(digest))

    def _put_files(self, digest: str, staged: Path) -> None:
        target = self.directory(digest)
        make_directory(target.parent)
        if target.is_dir():  # damaged
            shutil.rmtree(self._staging.take(target), ignore_errors=True)
        staged.rename(target)
        flush_directory(target.parent)

    def _put_manifest(self, digest: str, change: Callable[[Manifest], Manifest]) -> None:
        before = self._manifest(digest)
        if (changed := change(before)) != before:
            file = self.directory(digest) / MANIFEST_NAME
            self._staging.put(file, changed.to_json())
            put_scores_on_card(file.parent, changed)

    def _unknown(self, reference: str) -> UnknownAdapterError:
        advice = f". {self._labels.suggestions(reference)}" if self.description.is_there else f"; {NO_STORE}"
        return UnknownAdapterError(f"{self.root}: there is no adapter {reference!r}{advice}")
