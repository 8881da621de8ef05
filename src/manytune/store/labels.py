"""Names and tags of a store's adapters, each a file or a directory of its own.

    names/summaries           the digest of the adapter that has the name
    names/user%2Fadapter      the same for the name user/adapter, as adapters of a hub have
    tags/production/abcdef…   empty: the adapter of this digest has the tag
    former/summaries          the versions that the name has had; see `name_history.py`

A name has one namespace at most. Its file lies next to the others, so that the names `user` and `user/adapter` can't
get in each other's way, and no name leads out of the directory.

Whatever changes something is to be called with the store's lock in hand.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from manytune.atomic import flush_directory, make_directory
from manytune.errors import NameTakenError, StoreError
from manytune.store.digests import digest_in
from manytune.store.name_history import NamedVersion, NameHistory
from manytune.store.staging import Staging

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
#: Valid tags.
TAG = re.compile(_PART)
#: Valid names of adapters: `adapter`, or `user/adapter`.
NAME = re.compile(f"{_PART}(?:/{_PART})?")
_SLASH = "%2F"  # in the names of files; no name has a percent sign
_LISTED = 10  # names in a message


class Labels:
    """What the adapters of a store are called.

    Args:
        root: The store's directory.
        staging: Where its files are written before they appear.
    """

    def __init__(self, root: Path, staging: Staging) -> None:
        self._root = root
        self._names = root / "names"
        self._tags = root / "tags"
        self._staging = staging
        self._history = NameHistory(root / "former", staging)

    # -- reading

    def names(self) -> dict[str, list[str]]:
        """All names, sorted, by digest."""
        found: dict[str, list[str]] = {}
        for path in _sorted(self._names):
            digest = digest_in(path)
            if digest is not None:
                found.setdefault(digest, []).append(_name_of(path))
        return {digest: sorted(names) for digest, names in found.items()}

    def tags(self) -> dict[str, list[str]]:
        """All tags, sorted, by digest."""
        found: dict[str, list[str]] = {}
        for path in _sorted(self._tags):
            try:
                tagged = [entry.name for entry in path.iterdir()]
            except (FileNotFoundError, NotADirectoryError):  # another process took it back meanwhile
                continue
            for digest in tagged:
                found.setdefault(digest, []).append(path.name)
        return found

    def named(self, name: str) -> str | None:
        """The digest of the adapter that has a name; None if none has it."""
        return digest_in(self.file(name)) if NAME.fullmatch(name) else None

    def versions(self, name: str) -> list[NamedVersion]:
        """The versions that have and had a name, the present one first; none if it isn't taken."""
        present = self.named(name)
        if present is None:
            return []
        known = self._history.of(file_name(name))
        first = next((one for one in known if one.digest == present), NamedVersion(present, None))
        return [first, *(one for one in known if one.digest != present)]

    def has_name(self, name: str) -> bool:
        """Whether a name is taken, even if its file is damaged."""
        return NAME.fullmatch(name) is not None and self.file(name).is_file()

    def file(self, name: str) -> Path:
        """The file of a valid name, whether it is there or not."""
        return self._names / file_name(name)

    def suggestions(self, reference: str) -> str:
        """What to say to someone who asked for an adapter that isn't there."""
        return suggestions(reference, [_name_of(path) for path in _sorted(self._names)])

    # -- writing

    def require_free(self, name: str, digest: str) -> None:
        """Refuse a name that belongs to another adapter.

        Raises:
            NameTakenError: It does.
        """
        taken = self.named(name)
        if taken is not None and taken != digest:
            raise name_taken(str(self._root), name, taken)

    def put_name(self, name: str, digest: str) -> None:
        """Give an adapter a name, which it takes from another one that has it."""
        self._history.note(file_name(name), self.named(name), digest)
        self._staging.put(self.file(name), digest)

    def take_names(self, *names: str) -> None:
        """Take names away."""
        for name in names:
            self.file(name).unlink()
            self._history.forget(file_name(name))
        flush_directory(self._names)

    def put_tag(self, tag: str, digest: str) -> None:
        """Give an adapter a tag."""
        folder = self._tags / tag
        make_directory(folder)
        (folder / digest).touch()
        flush_directory(folder)

    def take_tag(self, tag: str, digest: str) -> None:
        """Take a tag from an adapter, if it has it."""
        if not TAG.fullmatch(tag):
            return
        folder = self._tags / tag
        (folder / digest).unlink(missing_ok=True)
        if not folder.is_dir():
            return
        flush_directory(folder)
        if not any(folder.iterdir()):
            folder.rmdir()


def check_name(name: str) -> None:
    """Refuse what can't be a name.

    Raises:
        StoreError: It is neither up to 100 letters, digits, dots, dashes and underscores, nor two of these.
    """
    if not NAME.fullmatch(name):
        raise StoreError(
            f"{name!r} can't be a name: expected up to 100 letters, digits, dots, dashes and underscores, the first "
            "one a letter or a digit; or two of these with one slash between them, as on a hub (user/adapter)."
        )


def check_tag(tag: str) -> None:
    """Refuse what can't be a tag.

    Raises:
        StoreError: It isn't up to 100 letters, digits, dots, dashes and underscores.
    """
    if not TAG.fullmatch(tag):
        raise StoreError(
            f"{tag!r} can't be a tag: expected up to 100 letters, digits, dots, dashes and underscores, the first one "
            "a letter or a digit."
        )


def suggestions(reference: str, names: Sequence[str]) -> str:
    """What to say to someone who asked a store with these names for an adapter that isn't there."""
    close = difflib.get_close_matches(reference, names, n=1)
    if close:
        return f"Did you mean {close[0]!r}?"
    if not names:
        return "Its adapters have no names, or there are none."
    return f"Its adapters: {', '.join(names[:_LISTED])}{', …' if len(names) > _LISTED else ''}."


def name_taken(where: str, name: str, taken: str) -> NameTakenError:
    """What to raise when a name of a store belongs to the adapter with another digest."""
    return NameTakenError(
        f"{where}: the name {name!r} belongs to adapter {taken[:12]}. Choose another name, or take this "
        "one from it with --move (move=True in Python)."
    )


def file_name(name: str) -> str:
    """What an adapter's name is called as a single file or directory; no two names are called alike."""
    return name.replace("/", _SLASH)


def _name_of(file: Path) -> str:
    return file.name.replace(_SLASH, "/")


def _sorted(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
