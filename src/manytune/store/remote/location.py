"""Where a store is: a directory, or a URL of shared storage."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from manytune.errors import StoreError

#: A scheme of two letters or more, so that no drive of Windows is one. A `Path` has lost one of the two slashes.
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}(?!/)(.*)", re.DOTALL)
_FILE = re.compile(r"file:(?://)?(/(?!/).*)", re.DOTALL)
_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+~-]*")


@dataclass(frozen=True)
class Location:
    """A prefix in shared storage, below which a store's objects are.

    Attributes:
        protocol: As fsspec calls it, such as `s3`.
        path: The bucket or container, and the prefix in it, without slashes at the ends.
    """

    protocol: str
    path: str

    @property
    def bucket(self) -> str:
        """The bucket or container."""
        return self.path.partition("/")[0]

    def url(self, name: str = "") -> str:
        """The URL of the store, or of an object in it."""
        return f"{self.protocol}://{self.path}{'/' if name else ''}{name}"

    def __str__(self) -> str:
        return self.url()


def is_url(location: str | Path) -> bool:
    """Whether a store's place is a URL rather than a directory."""
    text = str(location)
    return text.startswith("file:/") or _URL.fullmatch(text) is not None


def local_directory(location: str | Path) -> Path | None:
    """The directory that a path or a `file://` URL means; None for a URL of shared storage.

    Raises:
        StoreError: A `file://` URL has no absolute path.
    """
    text = str(location)
    if not text.startswith("file:/"):
        return None if is_url(text) else Path(location).expanduser()
    found = _FILE.fullmatch(text)
    if found is None:
        raise StoreError(f"{text}: expected an absolute path, as in file:///data/adapters.")
    return Path(found[1])


def location_of(url: str | Path) -> Location:
    """The place in shared storage that a URL means.

    Raises:
        StoreError: It is no URL of a bucket, or a part of it could lead out of its prefix or be read as something else.
    """
    found = _URL.fullmatch(str(url))
    if found is None:
        raise StoreError(f"{url}: expected a URL such as s3://bucket/prefix.")
    protocol, path = found[1], found[2].strip("/")
    if "@" in path.partition("/")[0]:
        raise StoreError(
            f"{protocol}://…: a store's URL can't hold credentials, which would end up in logs. Set them in the "
            "environment."
        )
    for part in path.split("/"):
        if not _SAFE.fullmatch(part) or len(part) > 255:
            raise StoreError(
                f"{url}: {part!r} can't be a part of a store's URL: expected a bucket, and a prefix of letters, "
                "digits, dots, dashes and underscores between slashes."
            )
    return Location(protocol, path)
