"""A directory of adapters in which each is kept once, under the hash of its content.

    store.json                the format's version
    objects/ab/abcdef…/       an adapter: HF PEFT's files and manifest.json; only its scores ever change
    names/summaries           the hash of the adapter that the name stands for
    tags/production/abcdef…   empty: the adapter has the tag
    staging/                  adapters on their way in or out
    .lock                     held while an adapter, a name or a tag appears or goes

What appears is renamed into place, and a name appears after its adapter and goes before it: whoever reads sees whole
adapters only, without a lock, whenever a writer is killed. What a killed writer leaves in `staging` is removed by the
next one.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from manytune.errors import StoreError
from manytune.store.base import Base
from manytune.store.files import atomic_write, flush_directory, flush_tree
from manytune.store.intake import content_id, content_id_in, gather
from manytune.store.manifest import MANIFEST_NAME, Manifest
from manytune.store.staging import Staging

_FORMAT = 1
_DESCRIPTION = "store.json"
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ID_START = re.compile(r"[0-9a-f]{6,64}")


@dataclass(frozen=True)
class StoreEntry:
    """An adapter in a store.

    Attributes:
        id: The hash of its content; see `intake.content_id`.
        path: Its directory, which HF PEFT reads, too.
        manifest: What it says about itself.
        names: What it is called, sorted.
        tags: Its tags, sorted.
        nbytes: The size of its files.
    """

    id: str
    path: Path
    manifest: Manifest
    names: tuple[str, ...]
    tags: tuple[str, ...]
    nbytes: int

    def __str__(self) -> str:
        return self.names[0] if self.names else self.id[:12]


class AdapterStore:
    """Adapters by content, name and tag. Any number of threads and processes may use one directory at once.

    Args:
        root: The store's directory; made by the first `add`.

    Raises:
        StoreError: The directory holds something else, or a store of a newer format.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        self._staging = Staging(self.root / "staging", self.root / ".lock")
        self._check_format()

    # -- reading

    def resolve(self, reference: str) -> str:
        """The content hash that a name, a hash or the first 6 or more digits of one stand for.

        Raises:
            StoreError: Nothing or more than one adapter is called so.
        """
        if _WORD.fullmatch(reference):
            named = content_id_in(self.root / "names" / reference)
            if named is not None and self.directory(named).is_dir():
                return named
        if _ID_START.fullmatch(reference):
            shard = self.root / "objects" / reference[:2]
            found = sorted(path.name for path in shard.glob(f"{reference}*"))
            if len(found) == 1:
                return found[0]
            if found:
                raise StoreError(f"{reference!r} is the start of {len(found)} adapters: {', '.join(found)}.")
        raise StoreError(self._unknown(reference))

    def directory(self, own: str) -> Path:
        """The directory of the adapter with a content hash, whether it is there or not."""
        return self.root / "objects" / own[:2] / own

    def path(self, reference: str) -> Path:
        """The directory of an adapter; see `resolve`."""
        return self.directory(self.resolve(reference))

    def __contains__(self, reference: str) -> bool:
        try:
            self.resolve(reference)
        except StoreError:
            return False
        return True

    def entry(self, reference: str) -> StoreEntry:
        """One adapter; see `resolve`."""
        found = self.resolve(reference)
        entry = self._entry(found, self._labels("names"), self._labels("tags"))
        if entry is None:
            raise StoreError(self._unknown(reference))
        return entry

    def entries(
        self, *, tag: str | None = None, unreadable: Callable[[str, StoreError], None] | None = None
    ) -> tuple[StoreEntry, ...]:
        """All adapters, or those with a tag, by their first names; those without a name come last.

        Args:
            tag: The tag.
            unreadable: Told the hash of each adapter whose manifest can't be read, and why; they aren't listed. None
                raises for the first.
        """
        names, tags = self._labels("names"), self._labels("tags")
        found = []
        for own in self._ids():
            if tag is not None and tag not in tags.get(own, ()):
                continue
            try:
                entry = self._entry(own, names, tags)
            except StoreError as error:
                if unreadable is None:
                    raise
                unreadable(own, error)
                continue
            if entry is not None:  # else another process has removed it meanwhile
                found.append(entry)
        return tuple(sorted(found, key=lambda entry: (not entry.names, entry.names, entry.id)))

    def names(self) -> dict[str, str]:
        """All names, sorted, with the content hashes that they stand for."""
        return dict(sorted((name, own) for own, called in self._labels("names").items() for name in called))

    # -- writing

    def add(
        self,
        source: str | Path,
        *,
        name: str | None = None,
        move: bool = False,
        tags: Iterable[str] = (),
        base: Base | None = None,
    ) -> StoreEntry:
        """Put a copy of an adapter into the store. One with the same content is kept once, with the scores of both.

        Args:
            source: A run, an adapter's directory, or a checkpoint of HF PEFT.
            name: What to call it; None for its hash alone.
            move: Take the name from another adapter that has it.
            tags: Tags to give it.
            base: Its base, to be checked; needed for a checkpoint of HF PEFT.

        Raises:
            StoreError: There is no whole adapter; the name is taken, or can't be one; or the base is missing.
            BaseMismatchError: The adapter was trained on another base.
            ConfigError: Its options are none that manytune implements.
        """
        tags = tuple(tags)
        for word in (*([name] if name is not None else []), *tags):
            _check_word(word)
        self._create()
        with self._staging.filling() as staged:
            manifest = gather(Path(source).expanduser(), staged, base)
            flush_tree(staged)
            own = content_id(manifest)
            with self._lock():
                if name is not None and not move:
                    self._check_free(name, own)
                target = self.directory(own)
                is_new = not target.is_dir()
                if not is_new:
                    self._put_scores(own, manifest.scores)
                else:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    staged.rename(target)
                    flush_directory(target.parent)
                if name is not None:
                    self._put_name(name, own)
                for tag in tags:
                    self._put_tag(tag, own)
        if not is_new:
            return self.entry(own)
        # The same, without looking through all names and tags for those of an adapter that has just come.
        names = {own: [name]} if name is not None else {}
        entry = self._entry(own, names, {own: sorted(set(tags))})
        return entry if entry is not None else self.entry(own)

    def alias(self, reference: str, name: str, *, move: bool = False) -> None:
        """Call an adapter by one more name.

        Args:
            reference: The adapter.
            name: The name.
            move: Take the name from another adapter that has it.

        Raises:
            StoreError: There is no such adapter; or the name is taken, or can't be one.
        """
        _check_word(name)
        with self._lock():
            own = self.resolve(reference)
            if not move:
                self._check_free(name, own)
            self._put_name(name, own)

    def unalias(self, name: str) -> None:
        """Forget a name; the adapter stays.

        Raises:
            StoreError: There is no such name.
        """
        with self._lock():
            if not _WORD.fullmatch(name) or not (self.root / "names" / name).is_file():
                raise StoreError(self._unknown(name))
            (self.root / "names" / name).unlink()
            flush_directory(self.root / "names")

    def tag(self, reference: str, *tags: str) -> None:
        """Give an adapter tags.

        Raises:
            StoreError: There is no such adapter, or a tag can't be one.
        """
        for tag in tags:
            _check_word(tag)
        with self._lock():
            own = self.resolve(reference)
            for tag in tags:
                self._put_tag(tag, own)

    def untag(self, reference: str, *tags: str) -> None:
        """Take tags from an adapter; those that it doesn't have are passed over."""
        with self._lock():
            own = self.resolve(reference)
            for tag in tags:
                if _WORD.fullmatch(tag):
                    self._take_tag(tag, own)

    def add_scores(self, reference: str, scores: Mapping[str, float]) -> None:
        """Put scores beside those that an adapter has; a score of the same name is replaced."""
        with self._lock():
            self._put_scores(self.resolve(reference), scores)

    def remove(self, reference: str) -> None:
        """Remove an adapter with all its names and tags. Who has its files open keeps them.

        Raises:
            StoreError: There is no such adapter.
        """
        with self._lock():
            own = self.resolve(reference)
            for name in self._labels("names").get(own, ()):
                (self.root / "names" / name).unlink()
            for tag in self._labels("tags").get(own, ()):
                self._take_tag(tag, own)
            flush_directory(self.root / "names")
            going = self._staging.take(self.directory(own))
        shutil.rmtree(going, ignore_errors=True)

    # -- parts

    def _check_format(self) -> None:
        file = self.root / _DESCRIPTION
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if self.root.is_dir() and any(not path.name.startswith(".") for path in self.root.iterdir()):
                raise StoreError(
                    f"{self.root}: this directory isn't a store of adapters, and isn't empty. Name another directory."
                ) from None
            return
        except ValueError as error:
            raise StoreError(f"{file}: expected JSON: {error}.") from None
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise StoreError(
                f"{file}: expected format {_FORMAT}, found {content!r}. A newer manytune may have written it: update."
            )

    def _create(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        with self._staging.lock():
            if not (self.root / _DESCRIPTION).is_file():
                # First of all: a directory with anything in it and without this isn't a store.
                atomic_write(self.root / _DESCRIPTION, json.dumps({"format": _FORMAT}) + "\n")
            for part in ("objects", "names", "tags", "staging"):
                (self.root / part).mkdir(exist_ok=True)

    def _lock(self) -> AbstractContextManager[None]:
        if not (self.root / _DESCRIPTION).is_file():
            raise StoreError(
                f"{self.root}: there is no store of adapters here. The first adapter added makes one."
            )
        return self._staging.lock()

    def _ids(self) -> Iterator[str]:
        objects = self.root / "objects"
        for shard in sorted(objects.iterdir()) if objects.is_dir() else ():
            if shard.is_dir():
                yield from sorted(path.name for path in shard.iterdir())

    def _labels(self, kind: str) -> dict[str, list[str]]:
        """All names, or all tags, by content hash."""
        found: dict[str, list[str]] = {}
        folder = self.root / kind
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            try:
                named = content_id_in(path) if kind == "names" else None
                owners = [p.name for p in path.iterdir()] if kind == "tags" else [named] if named else []
            except (FileNotFoundError, NotADirectoryError):  # another process took it back meanwhile
                continue
            for own in owners:
                found.setdefault(own, []).append(path.name)
        return found

    def _entry(
        self, own: str, names: Mapping[str, list[str]], tags: Mapping[str, list[str]]
    ) -> StoreEntry | None:
        path = self.directory(own)
        try:
            manifest = Manifest.read(path / MANIFEST_NAME)
            nbytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        except FileNotFoundError:
            return None
        return StoreEntry(own, path, manifest, tuple(names.get(own, ())), tuple(tags.get(own, ())), nbytes)

    def _check_free(self, name: str, own: str) -> None:
        file = self.root / "names" / name
        if (taken := content_id_in(file)) not in (None, own):
            raise StoreError(
                f"{self.root}: the name {name!r} belongs to adapter {str(taken)[:12]}. Choose another name, or move it."
            )

    def _put_name(self, name: str, own: str) -> None:
        self._staging.put(self.root / "names" / name, own)

    def _put_tag(self, tag: str, own: str) -> None:
        folder = self.root / "tags" / tag
        folder.mkdir(exist_ok=True)
        (folder / own).touch()
        flush_directory(folder)

    def _take_tag(self, tag: str, own: str) -> None:
        folder = self.root / "tags" / tag
        (folder / own).unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    def _put_scores(self, own: str, scores: Mapping[str, float]) -> None:
        file = self.directory(own) / MANIFEST_NAME
        manifest = Manifest.read(file)
        together = {**manifest.scores, **scores}
        if together != manifest.scores:
            self._staging.put(file, dataclasses.replace(manifest, scores=together).to_json())

    def _unknown(self, reference: str) -> str:
        folder = self.root / "names"
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        close = difflib.get_close_matches(reference, names, n=1)
        if close:
            return f"{self.root}: there is no adapter {reference!r}. Did you mean {close[0]!r}?"
        listed = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
        return f"{self.root}: there is no adapter {reference!r}. " + (
            f"Its adapters: {listed}." if names else "Its adapters have no names, or there are none."
        )


def _check_word(word: str) -> None:
    if not _WORD.fullmatch(word):
        raise StoreError(
            f"{word!r} can't be a name or a tag: expected up to 100 letters, digits, dots, dashes and underscores, the "
            "first one a letter or a digit."
        )
