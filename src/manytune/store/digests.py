"""What identifies content: the SHA-256 of a file, and the digest of an adapter."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from manytune.errors import UnknownAdapterError

if TYPE_CHECKING:
    from manytune.store.manifest import Manifest

_DIGEST = re.compile(rb"[0-9a-f]{64}")
_START = re.compile(r"[0-9a-f]{6,64}")


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(manifest: Manifest) -> str:
    """The digest that identifies an adapter by its content: a SHA-256, in hexadecimal digits.

    It covers all that decides an answer: the files, the base, and how prompts are made. Scores, the recipe and the date
    describe the adapter and don't change what it is.
    """
    content = [
        dict(manifest.files),
        manifest.fingerprint.identity,
        dict(manifest.template) if manifest.template is not None else None,
        {task: dict(parts) for task, parts in (manifest.templates or {}).items()},
        manifest.encoding,
        # Adapters that have none keep the digest that they had before there were any.
        *([] if manifest.encoding_options is None else [dict(manifest.encoding_options)]),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def digest_in(file: Path) -> str | None:
    """The digest that a file holds; None if there is no such file, or something else in it."""
    if not file.is_file():
        return None
    try:
        with file.open("rb") as opened:
            content = opened.read(65)
    except FileNotFoundError:  # another process took it back meanwhile
        return None
    return content.decode() if _DIGEST.fullmatch(content) else None


def digest_from_start(start: str, among: Callable[[], Iterable[str]]) -> str | None:
    """The digest that begins with some digits; None if they are fewer than 6, or something else, or no digest does.

    Args:
        start: The digits.
        among: The digests of which it is one; asked for only if it can be.

    Raises:
        UnknownAdapterError: More than one begins so.
    """
    if not _START.fullmatch(start):
        return None
    found = sorted(digest for digest in among() if digest.startswith(start))
    if len(found) > 1:
        raise UnknownAdapterError(
            f"{start!r} is the start of {len(found)} adapters: {', '.join(found)}. Give more digits."
        )
    return found[0] if found else None
