"""What `/v1/models` and `/v1/adapters` list, in memory: read from the store by the watcher, never for a request.

Each adapter is read once, and again when its name means another version or its manifest was written again (its scores
changed). What a listing says of it is written then, too, so that to list thousands is to join ready lines.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from manytune.errors import ManytuneError
from manytune.server.adapters.examined import Examined, NotExaminedError
from manytune.server.json_lists import json_bytes
from manytune.store.entry import StoreEntry
from manytune.store.labels import NAME
from manytune.store.manifest import Manifest
from manytune.store.store import AdapterStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listed:
    """An adapter in the listings.

    Attributes:
        name: Its name.
        digest: The version that has it.
        error: Why its manifest can't be read; None if it can.
        model: It as a model, in JSON; empty if its manifest can't be read.
        facts: What `/v1/adapters` says of it beyond its state in the server.
        stamp: Changes if its manifest does.
        tags: Its tags, sorted.
    """

    name: str
    digest: str
    error: str | None
    model: bytes
    facts: Mapping[str, Any]
    stamp: Hashable | None
    tags: tuple[str, ...] = ()


class KnownVerdicts(Protocol):
    """Which adapters can be served."""

    def of(self, entry: StoreEntry) -> str | None:
        """Why an adapter can't be served; None if it can."""

    def known(self, digest: str) -> str | None:
        """The same as far as it has been tried, without waiting for anything."""


class Catalogue:
    """The adapters of a store as listings show them. One thread at a time may update it, any may read.

    Args:
        store: The store.
        verdicts: Which of them can be served.
        examined: What is known of them from their examination, before which nothing of them is read.
        base_name: The base's name.
    """

    def __init__(
        self, store: AdapterStore, verdicts: KnownVerdicts, examined: Examined, *, base_name: str
    ) -> None:
        self._store = store
        self._verdicts = verdicts
        self._examined = examined
        self._base_name = base_name
        self._listed: dict[str, Listed] = {}  # replaced as a whole, never changed
        self._tags: Mapping[str, Collection[str]] = {}  # by digest
        self._base = json_bytes(
            {"id": base_name, "object": "model", "created": 0, "owned_by": "manytune", "parent": None}
        )

    def update(self, names: Mapping[str, str]) -> None:
        """Take over the store's present state.

        Args:
            names: The digest of each name.
        """
        former, self._tags = self._listed, self._store.tags()
        found: dict[str, Listed] = {}
        for name in sorted(filter(NAME.fullmatch, names)):
            known, digest = former.get(name), names[name]
            stamp = self._stamp(digest)
            if known is not None and (known.digest, known.stamp, known.tags) == (
                digest,
                stamp,
                self._of(digest),
            ):
                found[name] = known
            elif stamp is not None:  # else another process has removed it meanwhile
                found[name] = self._examine_and_read(name, digest, stamp)
        self._listed = found

    def update_one(self, name: str, digest: str) -> Listed | None:
        """Take over one name, which a request has shown to mean another version than was known. None if it is gone.

        Raises:
            NotExaminedError: That version wasn't examined yet.
        """
        stamp = self._stamp(digest)
        if stamp is None:
            return None
        listed = self._read_or_why_not(name, digest, stamp)
        self._listed = dict(sorted({**self._listed, name: listed}.items()))
        return listed

    # -- reading

    @property
    def listed(self) -> Iterable[Listed]:
        """All adapters, by name."""
        return self._listed.values()

    def get(self, name: str) -> Listed | None:
        """The adapter of a name, as far as the catalogue knows."""
        return self._listed.get(name)

    @property
    def base(self) -> bytes:
        """The base as a model, in JSON."""
        return self._base

    def models(self, may_use: Callable[[str], bool]) -> Iterator[bytes]:
        """The models of a key, the base first, in JSON; adapters that the server can't run aren't models of it."""
        if may_use(self._base_name):
            yield self._base
        for one in self.listed:
            if self.unservable(one) is None and may_use(one.name):
                yield one.model

    def unservable(self, listed: Listed) -> str | None:
        """Why the server can't run an adapter; None if nothing is known against it."""
        return listed.error if listed.error is not None else self._verdicts.known(listed.digest)

    # -- parts

    def _of(self, digest: str) -> tuple[str, ...]:
        return tuple(self._tags.get(digest, ()))

    def _stamp(self, digest: str) -> Hashable | None:
        stamp = self._store.stamp(digest)
        return None if stamp is None else (stamp, self._store.is_here(digest))

    def _examine_and_read(self, name: str, digest: str, stamp: Hashable) -> Listed:
        try:
            if self._store.is_here(digest):
                self._examined.examine(digest)
            return self._read_or_why_not(name, digest, stamp)
        except NotExaminedError:  # its files were changed just now
            why = f"{self._store.directory(digest)}: the adapter is being changed."
        except ManytuneError as error:
            why = str(error)
        return Listed(
            name, digest, why, b"", _facts(None, None), None
        )  # it is tried again at the next update

    def _read_or_why_not(self, name: str, digest: str, stamp: Hashable) -> Listed:
        """One adapter's entry, whatever is in its directory: the others have to be listed all the same."""
        try:
            return self._read(name, digest, stamp)
        except NotExaminedError:
            raise
        except Exception as error:
            _log.exception("adapter %s can't be listed", name)
            why = f"the adapter can't be read: {type(error).__name__}"
            return Listed(name, digest, why, b"", _facts(None, None), stamp, self._of(digest))

    def _read(self, name: str, digest: str, stamp: Hashable) -> Listed:
        try:
            # What is elsewhere is examined when it is fetched: until then its manifest is listed, without the fields.
            is_here = self._store.is_here(digest)
            fields = self._examined.known(digest).require().fields if is_here else ()
            entry = self._store.described(digest, (name,))
        except (ManytuneError, OSError) as error:
            return Listed(name, digest, str(error), b"", _facts(None, None), stamp, self._of(digest))
        self._verdicts.of(entry)
        tags, facts = self._of(digest), _facts(entry.manifest, entry.nbytes)
        about = {**_model(name, digest, entry.manifest, fields, self._base_name), "tags": tags}
        model = json_bytes({**about, "scores": facts["scores"]})
        return Listed(name, digest, None, model, facts, stamp, tags)


def _facts(manifest: Manifest | None, nbytes: int | None) -> dict[str, Any]:
    scores = {} if manifest is None else manifest.scores
    return {
        "method": None if manifest is None else manifest.method,
        "created": None if manifest is None else manifest.created,
        "bytes": nbytes,
        "scores": {key: score if math.isfinite(score) else None for key, score in scores.items()},
    }


def _model(
    name: str, digest: str, manifest: Manifest, fields: Sequence[str], base_name: str
) -> dict[str, Any]:
    """A model; in addition to OpenAI's keys, with its version, and its templates' fields and tasks, or its labels."""
    return {
        "id": name,
        "object": "model",
        "created": _seconds(manifest.created),
        "owned_by": "manytune",
        "parent": base_name,
        "root": digest,
        "method": manifest.method,
        "fields": list(fields),
        "tasks": list(manifest.templates or {}),
        "labels": list((manifest.labels or {}).get("names", ())),
    }


def _seconds(created: str) -> int:
    try:
        return int(datetime.fromisoformat(created).timestamp())
    except (ValueError, OverflowError, OSError):
        return 0
