"""The index of a store on shared storage: which adapters it has, their names, tags, files and manifests.

    index/0000000041.json.gz      the state after 41 changes
    index/0000000042.json.gz      the state after 42: the highest number counts
    objects/ab/abcdef…/UPLOAD/    an adapter's files, as somebody uploaded them once

It is one object, so that a listing or a look for changes takes two requests, however many adapters there are.
What is read here was written by whoever may write to the bucket: sizes are bounded, and each value is checked.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from manytune.errors import DamagedError
from manytune.store.contents import CARD_NAME
from manytune.store.digests import digest_of
from manytune.store.labels import NAME, TAG, name_taken
from manytune.store.manifest import MANIFEST_NAME, Manifest

MOST_BYTES = 64 << 20
_MOST_UNPACKED = 512 << 20
_FORMAT = 1
_MOST_FILES = 1000  # of an adapter
_LONGEST_NAME = 200
_RECENT = 256  # ids of changes that an index remembers
_DIGEST = re.compile("[0-9a-f]{64}")
_UPLOAD = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{16}")
_ID = re.compile("[0-9a-f]{32}")
_DIGITS = re.compile(r"index/(\d{10})\.json\.gz")


@dataclass(frozen=True)
class File:
    """One file of an adapter.

    Attributes:
        size: Its bytes.
        sha256: Their SHA-256, in hexadecimal digits.
    """

    size: int
    sha256: str


@dataclass(frozen=True)
class Kept:
    """An adapter in the index.

    Attributes:
        upload: The folder of its objects below that of its digest. Each upload has one of its own, so that removing an
            adapter never takes the files of one that is being added.
        files: Its files, by their paths in its directory.
        manifest: Its `manifest.json` as it is now, scores added later included.
        tags: Its tags.
        revision: How often the manifest was changed.
    """

    upload: str
    files: Mapping[str, File]
    manifest: Mapping[str, Any]
    tags: frozenset[str] = frozenset()
    revision: int = 0

    @property
    def nbytes(self) -> int:
        """The size of its files."""
        return sum(file.size for file in self.files.values())

    def read_manifest(self, digest: str, where: str) -> Manifest:
        """The manifest, checked.

        Raises:
            DamagedError: It isn't one, or isn't that of the adapter and the files under which it is kept.
        """
        try:
            manifest = Manifest.from_json(json.dumps(self.manifest), where=where)
            found = digest_of(manifest)
            manifest.to_json().encode()
        except (ValueError, TypeError, RecursionError) as error:  # half of a surrogate pair, say
            raise DamagedError(f"{where}: the manifest can't be written down: {error}.") from error
        if found != digest:
            raise DamagedError(f"{where}: this is the manifest of another adapter than {digest[:12]}.")
        for name, sha256 in manifest.files.items():
            if name not in self.files or self.files[name].sha256 != sha256:
                raise DamagedError(f"{where}: {name} isn't the file that the manifest names.")
        if extra := self.files.keys() - manifest.files.keys() - {CARD_NAME, MANIFEST_NAME}:
            raise DamagedError(f"{where}: {min(extra)[:200]!r} is no file of the adapter.")
        if both := self.files.keys() & {
            str(above) for name in self.files for above in PurePosixPath(name).parents
        }:
            raise DamagedError(f"{where}: {min(both)[:200]!r} is a file and a folder.")
        return manifest

    def with_manifest(self, manifest: Manifest) -> Kept:
        """The same with another manifest; itself if that is equal."""
        content = json.loads(manifest.to_json())
        if content == self.manifest:
            return self
        return dataclasses.replace(self, manifest=content, revision=self.revision + 1)


@dataclass(frozen=True)
class Index:
    """The state of a store. Never changed: a change makes another one.

    Attributes:
        number: How many changes led to it; 0 for a store that nobody has written to.
        adapters: What it has, by digest.
        names: Digests by name.
        recent: The ids of the last changes, by which a writer knows whether its own is among them.
    """

    number: int = 0
    adapters: Mapping[str, Kept] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    recent: tuple[str, ...] = ()

    # -- reading

    def names_of(self, digest: str) -> list[str]:
        """What an adapter is called, sorted."""
        return sorted(name for name, named in self.names.items() if named == digest)

    def names_by_digest(self) -> dict[str, list[str]]:
        """All names, sorted, by digest."""
        found: dict[str, list[str]] = {}
        for name in sorted(self.names):
            found.setdefault(self.names[name], []).append(name)
        return found

    # -- changes

    def with_adapter(self, digest: str, kept: Kept) -> Index:
        """With an adapter, in the place of what was kept under its digest."""
        if self.adapters.get(digest) is kept:
            return self
        return dataclasses.replace(self, adapters={**self.adapters, digest: kept})

    def with_upload(self, digest: str, lost: Kept | None, uploaded: Kept) -> Index:
        """With other objects of an adapter in the place of those that were lost, if these are still kept for it."""
        kept = self.adapters.get(digest)
        if lost is None or kept is None or kept.upload != lost.upload:
            return self
        return self.with_adapter(
            digest, dataclasses.replace(kept, upload=uploaded.upload, files=uploaded.files)
        )

    def without_adapter(self, digest: str) -> Index:
        """Without an adapter, its names and its tags."""
        adapters = {other: kept for other, kept in self.adapters.items() if other != digest}
        names = {name: named for name, named in self.names.items() if named != digest}
        return dataclasses.replace(self, adapters=adapters, names=names)

    def with_name(self, name: str, digest: str, *, move: bool, where: str) -> Index:
        """With a name for an adapter.

        Raises:
            NameTakenError: It belongs to another one, and isn't to be moved.
        """
        taken = self.names.get(name)
        if taken == digest:
            return self
        if taken is not None and not move:
            raise name_taken(where, name, taken)
        return dataclasses.replace(self, names={**self.names, name: digest})

    def without_name(self, name: str) -> Index:
        """Without a name."""
        return dataclasses.replace(
            self, names={other: at for other, at in self.names.items() if other != name}
        )

    def with_tags(self, digest: str, *, add: Collection[str] = (), take: Collection[str] = ()) -> Index:
        """With other tags of an adapter."""
        kept = self.adapters[digest]
        tags = (kept.tags | frozenset(add)) - frozenset(take)
        return self if tags == kept.tags else self.with_adapter(digest, dataclasses.replace(kept, tags=tags))

    def succeeded_by(self, changed: Index, change_id: str) -> Index:
        """The next index: with a change to this one, and the change's id."""
        return dataclasses.replace(
            changed, number=self.number + 1, recent=(*self.recent, change_id)[-_RECENT:]
        )

    # -- files

    def to_bytes(self) -> bytes:
        """As it is stored."""
        content = {
            "format": _FORMAT,
            "recent": self.recent,
            "names": dict(sorted(self.names.items())),
            "adapters": {
                digest: {
                    "upload": kept.upload,
                    "revision": kept.revision,
                    "tags": sorted(kept.tags),
                    "files": {name: [file.size, file.sha256] for name, file in kept.files.items()},
                    "manifest": kept.manifest,
                }
                for digest, kept in self.adapters.items()
            },
        }
        return gzip.compress(json.dumps(content).encode(), compresslevel=6, mtime=0)

    @classmethod
    def from_bytes(cls, content: bytes, *, number: int, where: str) -> Index:
        """Read what `to_bytes` wrote.

        Raises:
            DamagedError: It isn't that, or of a newer format.
        """
        values = _unpacked(content, where)
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            found = values.get("format") if isinstance(values, dict) else type(values).__name__
            raise DamagedError(
                f"{where}: expected an index of format {_FORMAT}, found {str(found)[:100]}. A newer manytune may have "
                "written it: update."
            )
        parts: dict[str, Any] = {key: values.get(key) for key in ("adapters", "names", "recent")}
        adapters, names, recent = parts.values()
        _check(isinstance(adapters, dict), where, "adapters", "an object")
        kept = {digest: _kept(digest, value, where) for digest, value in adapters.items()}
        _check(
            _all_in(
                names,
                lambda name, named: bool(NAME.fullmatch(name)) and isinstance(named, str) and named in kept,
            ),
            where,
            "names",
            "digests of its adapters by name",
        )
        _check(
            isinstance(recent, list)
            and len(recent) <= _RECENT
            and all(isinstance(one, str) and _ID.fullmatch(one) for one in recent),
            where,
            "recent",
            "ids of changes",
        )
        return cls(number, kept, names, tuple(recent))


def index_name(number: int) -> str:
    """The name of the object that holds an index."""
    return f"index/{number:010d}.json.gz"


def index_number(name: str) -> int | None:
    """The number of the index that an object holds; None if it holds something else."""
    found = _DIGITS.fullmatch(name)
    return int(found[1]) if found else None


def object_name(digest: str, upload: str, file: str) -> str:
    """The name of the object that holds a file of an adapter."""
    return f"objects/{digest[:2]}/{digest}/{upload}/{file}"


def _unpacked(content: bytes, where: str) -> Any:
    try:
        unpacking = zlib.decompressobj(wbits=31)  # gzip
        text = unpacking.decompress(content, _MOST_UNPACKED)
        if unpacking.unconsumed_tail or not unpacking.eof:
            raise ValueError("it is cut off, or too large")
        return json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        raise DamagedError(
            f"{where}: expected an index in JSON, packed with gzip: {error}. If it was damaged, remove this object: "
            "the one of the number before it counts then."
        ) from error


def _kept(digest: str, value: Any, where: str) -> Kept:
    here = f"{where}: adapter {digest[:12]!r}"
    _check(
        bool(_DIGEST.fullmatch(digest)) and isinstance(value, dict), here, "an entry", "an object by digest"
    )
    upload, revision = value.get("upload"), value.get("revision")
    _check(isinstance(upload, str) and bool(_UPLOAD.fullmatch(upload)), here, "upload", "a folder's name")
    _check(isinstance(revision, int) and 0 <= revision < 1 << 53, here, "revision", "a whole number")
    tags, files, manifest = value.get("tags"), value.get("files"), value.get("manifest")
    are_tags = isinstance(tags, list) and all(isinstance(tag, str) and TAG.fullmatch(tag) for tag in tags)
    _check(are_tags, here, "tags", "words")
    _check(
        _all_in(files, _is_file) and len(files) <= _MOST_FILES,
        here,
        "files",
        f"a size and a SHA-256 by at most {_MOST_FILES:,} paths inside the adapter's directory",
    )
    _check(isinstance(manifest, dict), here, "manifest", "an object")
    found = {name: File(size, sha256) for name, (size, sha256) in files.items()}
    return Kept(upload, found, manifest, frozenset(tags), revision)


def _is_file(name: str, value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    size, sha256 = value
    return (
        not {"", ".", ".."} & set(name.split("/"))
        and max(map(len, name.split("/"))) <= _LONGEST_NAME
        and "\0" not in name
        and "\\" not in name
        and type(size) is int
        and 0 <= size < 1 << 50
        and isinstance(sha256, str)
        and _DIGEST.fullmatch(sha256) is not None
    )


def _all_in(values: Any, fits: Callable[[str, Any], bool]) -> bool:
    return isinstance(values, dict) and all(fits(name, value) for name, value in values.items())


def _check(is_right: bool, where: str, key: str, expected: str) -> None:
    if not is_right:
        raise DamagedError(f"{where}: {key} must be {expected}.")
