"""Putting an adapter's files into shared storage, and removing what is of no adapter any more.

Each upload has a folder of its own, whose name says when it began. So whoever removes an adapter removes the objects of
that upload alone, while another writer may be adding the same adapter again. What a killed process has uploaded, and
nobody knows of, is removed a day later, when somebody removes an adapter.
"""

from __future__ import annotations

import logging
import re
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

from manytune.errors import StoreError
from manytune.store.digests import sha256_file
from manytune.store.manifest import Manifest
from manytune.store.remote.index import File, Index, Kept, object_name
from manytune.store.remote.objects import Objects

_log = logging.getLogger(__name__)
_TIME = "%Y%m%dT%H%M%SZ"
_OBJECT = re.compile(r"objects/[0-9a-f]{2}/([0-9a-f]{64})/((\d{8}T\d{6}Z)-[0-9a-f]{16})/.+")
_ABANDONED = timedelta(days=1)
_TOO_LONG = timedelta(hours=12)


def upload_adapter(objects: Objects, digest: str, directory: Path, manifest: Manifest) -> Kept:
    """Upload a directory's files; they are nobody's until the index has what is returned.

    Args:
        objects: The store's objects.
        digest: The adapter.
        directory: Its files, its manifest among them.
        manifest: The manifest.
    """
    upload = f"{datetime.now(UTC):{_TIME}}-{secrets.token_hex(8)}"
    files = {}
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = file.relative_to(directory).as_posix()
        files[name] = File(file.stat().st_size, sha256_file(file))
        objects.upload(file, object_name(digest, upload, name))
    return Kept(upload, files, {}).with_manifest(manifest)


def is_uploaded(objects: Objects, digest: str, kept: Kept) -> bool:
    """Whether all objects of an adapter are in the storage, with as many bytes as they were uploaded with."""
    found = objects.list(object_name(digest, kept.upload, "").rstrip("/"))
    return all(
        found.get(object_name(digest, kept.upload, name)) == file.size for name, file in kept.files.items()
    )


def require_recent(kept: Kept, objects: Objects) -> None:
    """Refuse to enter an upload that began so long ago that another writer may soon take it for abandoned.

    Raises:
        StoreError: It did; the machine may have slept.
    """
    if datetime.now(UTC) - _began(kept.upload.partition("-")[0]) > _TOO_LONG:
        raise StoreError(f"{objects.location}: the upload took more than 12 hours. Add the adapter again.")


def remove_upload(objects: Objects, digest: str, kept: Kept) -> None:
    """Remove the objects of an adapter that isn't in the index any more, or never was. Failing costs space only."""
    try:
        objects.delete(object_name(digest, kept.upload, name) for name in kept.files)
    except StoreError as error:
        _log.warning("objects of adapter %s are left: %s", digest[:12], error)


def remove_abandoned(objects: Objects, index: Index) -> None:
    """Remove what writers that were killed have left, once it is a day old. Failing costs space only."""
    try:
        left = []
        for name in objects.list("objects"):
            found = _OBJECT.fullmatch(name)
            if found is None:  # not ours
                continue
            kept = index.adapters.get(found[1])
            is_entered = kept is not None and kept.upload == found[2]
            if not is_entered and datetime.now(UTC) - _began(found[3]) > _ABANDONED:
                left.append(name)
        objects.delete(left)
    except StoreError as error:
        _log.warning("abandoned objects are left: %s", error)


def _began(text: str) -> datetime:
    try:
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except ValueError:  # digits that are no time: nobody's that could be known
        return datetime.now(UTC)
