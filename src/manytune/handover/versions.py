"""Names to versions in vLLM: which of them it has, which are in use, and how both are kept in step with the store.

vLLM calls an adapter by its digest, the hash of its content. So a name that gets a new version means another adapter of
vLLM's from the next request on, running requests end on the one that they began with, no cached prefix outlives its
version, and each of vLLM's processes that listen finds a version by itself, in the directory of its resolver.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manytune.errors import ManytuneError, StoreError, UnreachableError
from manytune.handover.adapter_copies import remove_copy, write_copy
from manytune.handover.adapter_prompts import AdapterPrompts, ChatAdditions
from manytune.handover.vllm_client import VllmClient
from manytune.handover.vllm_rules import VllmVerdicts
from manytune.server.adapters.catalogue import Catalogue, Listed
from manytune.server.adapters.names import Names, changes
from manytune.server.http_errors import HttpError, for_clients, http_error_of, model_not_found
from manytune.store.entry import StoreEntry
from manytune.store.manifest import Manifest
from manytune.store.store import AdapterStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Version:
    """What answers a request.

    Attributes:
        name: The model's name in the request.
        called: What vLLM calls it.
        manifest: The adapter's; None for the base.
        additions: What requests for a conversation need.
    """

    name: str
    called: str
    manifest: Manifest | None
    additions: ChatAdditions

    @property
    def fingerprint(self) -> str:
        """Identifies the version in an answer."""
        return "base" if self.manifest is None else f"adapter_{self.called[:12]}"


class Versions:
    """The adapters of a store in a vLLM. To be used on the event loop.

    Args:
        store: Where the adapters are kept.
        verdicts: Which of them vLLM can serve.
        prompts: How it is asked.
        client: Reaches vLLM.
        copies: The directory of vLLM's resolver.
        location: What vLLM calls its model.
        base_name: The base's name in requests.

    Attributes:
        catalogue: What listings say of the adapters.
        loads: How many were loaded into vLLM so far.
    """

    def __init__(
        self,
        store: AdapterStore,
        verdicts: VllmVerdicts,
        prompts: AdapterPrompts,
        client: VllmClient,
        *,
        copies: Path,
        location: str,
        base_name: str,
    ) -> None:
        self._store = store
        self._verdicts = verdicts
        self._prompts = prompts
        self._client = client
        self._copies = copies
        self._location = location
        self._base_name = base_name
        self.catalogue = Catalogue(store, verdicts, verdicts.examined, base_name=base_name)
        self.loads = 0
        self._loaded: dict[str, StoreEntry] = {}  # by digest: what vLLM has
        self._loading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._in_use: Counter[str] = Counter()
        self._names = Names(store, self._loaded.__contains__, base_name=base_name)
        self._present: dict[str, str] = {}  # names at the last check
        self._former: set[str] = set()  # had no name at the last check already
        self._checking = asyncio.Lock()

    @property
    def unreachable(self) -> str | None:
        """Why the store couldn't be read when it was last checked; None if it could."""
        return self._names.unreachable

    @property
    def loaded(self) -> frozenset[str]:
        """The digests of the versions that vLLM has."""
        return frozenset(self._loaded)

    def in_use(self, digest: str) -> int:
        """How many requests use a version."""
        return self._in_use[digest]

    # -- for requests

    async def acquire(self, name: str) -> Version:
        """The version that a name means now, which vLLM has until `release`.

        Raises:
            HttpError: 404 if there is none, 409 if vLLM can't serve it, 503 if vLLM doesn't answer, or hasn't loaded it
                and the store can't be reached.
        """
        if name == self._base_name:
            return Version(name, name, None, self._prompts.additions(None))
        digest = await asyncio.to_thread(self._names.resolve, name)
        self._in_use[digest] += 1  # from now on it isn't unloaded
        try:
            entry = await self._load(digest)
            additions = self._prompts.additions(entry.manifest)
        except BaseException:
            self._forget_use(digest)
            raise
        return Version(name, digest, entry.manifest, additions)

    def release(self, version: Version) -> None:
        """Undo one `acquire`."""
        if version.manifest is not None:
            self._forget_use(version.called)

    async def load(self, name: str) -> str:
        """Have vLLM load an adapter before it is requested; returns its digest. Errors as in `acquire`."""
        version = await self.acquire(name)
        self.release(version)
        return version.called

    async def look_up(self, name: str) -> Listed:
        """An adapter as listings have it, of the version that its name means now.

        Raises:
            HttpError: 404 if there is none.
        """
        digest = await asyncio.to_thread(self._names.resolve, name)
        listed = self.catalogue.get(name)
        if listed is None or listed.digest != digest:

            def read(name: str) -> Listed | None:
                return self.catalogue.update_one(name, digest)

            listed = await self._verdicts.examined.when_examined(read, name)
        if listed is None:
            raise model_not_found(name)
        return listed

    # -- in step with the store

    async def check_base(self) -> None:
        """Write it into the log if vLLM makes other prompts of conversations with the base than manytune does."""
        reason = await self._prompts.why_not(None, self._base_name, self._client)
        if reason is not None:
            _log.warning("the base %s: %s", self._base_name, reason)

    async def check(self) -> dict[str, list[str]]:
        """Follow changes of the store; returns the names that were added, updated and removed since the last time.

        New versions of names whose former version vLLM has are loaded; versions without a name are unloaded as soon as
        no request uses them.
        """
        async with self._checking:
            before, now = self._present, await asyncio.to_thread(self._names.follow)
            await asyncio.to_thread(self.catalogue.update, now)
            self._present = now
            changed = changes(before, now)
            for name in changed["updated"]:
                if before[name] in self._loaded:
                    await self._load_ahead(name)
            await self._unload_former(set(now.values()))
            return changed

    async def _load_ahead(self, name: str) -> None:
        try:
            await self.load(name)
        except HttpError as error:
            _log.error("the new version of %s can't be used: %s", name, error.message)

    async def _unload_former(self, present: set[str]) -> None:
        """Unload versions without a name; their files go a check later, when vLLM has let go of their last request."""
        without = {digest for digest in self._loaded if digest not in present and not self._in_use[digest]}
        for digest in without & self._former:
            async with self._loading[digest]:
                if self._in_use[digest]:
                    continue
                await self._client.json("POST", "/v1/unload_lora_adapter", {"lora_name": digest})
                self._loaded.pop(digest, None)
                await asyncio.to_thread(remove_copy, self._copies / digest)
        self._former = without

    # -- parts

    async def _load(self, digest: str) -> StoreEntry:
        async with self._loading[digest]:
            known = self._loaded.get(digest)
            if known is not None:
                return known
            try:
                entry = await asyncio.to_thread(self._prepared, digest)
            except UnreachableError as error:
                raise http_error_of(error) from error
            except (ManytuneError, OSError) as error:
                raise _unusable(str(error)) from error
            body = {"lora_name": digest, "lora_path": str(self._copies / digest)}
            status, content = await self._client.json("POST", "/v1/load_lora_adapter", body)
            # Another of its processes, or its resolver, may have been asked for it before.
            if status != 200 and "already been loaded" not in str(content):
                raise self._refused(digest, f"vLLM refuses it: {_message(content)}")
            reason = await self._prompts.why_not(entry.manifest, digest, self._client)
            if reason is not None:
                raise self._refused(digest, reason)
            self._verdicts.note(digest, None)
            self._loaded[digest] = entry
            self.loads += 1
            return entry

    def _prepared(self, digest: str) -> StoreEntry:
        """A version whose files were checked and lie where vLLM's resolver looks for them."""
        self._verdicts.examined.examine(digest).require()
        entry = self._store.entry(digest)
        reason = self._verdicts.of(entry)
        if reason is not None:
            raise StoreError(reason)
        self._prompts.additions(entry.manifest)
        write_copy(entry.path, self._copies / digest, base=self._location)
        return entry

    def _refused(self, digest: str, reason: str) -> HttpError:
        self._verdicts.note(digest, reason)
        return _unusable(reason)

    def _forget_use(self, digest: str) -> None:
        self._in_use[digest] -= 1
        self._in_use += Counter()  # drops entries at zero


def _unusable(reason: str) -> HttpError:
    return HttpError(409, for_clients(reason), code="adapter_unusable", param="model")


def _message(content: Any) -> str:
    error = content.get("error", content) if isinstance(content, dict) else content
    return str(error.get("message", error) if isinstance(error, dict) else error)[:500]
