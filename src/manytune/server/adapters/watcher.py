"""Follows changes of the store: loads new versions before they are requested, and removes former ones from memory."""

from __future__ import annotations

import asyncio
import logging

from manytune.errors import CacheFullError, ManytuneError
from manytune.server.adapters.names import changes
from manytune.server.adapters.registry import AdapterRegistry
from manytune.server.any_engine import AnyEngine
from manytune.server.background import repeat
from manytune.server.http_errors import HttpError
from manytune.server.loop import EngineLoop

_log = logging.getLogger(__name__)


class Watcher:
    """Compares the store's names with those of the last time.

    A request always gets the present version of its adapter. The watcher loads new versions of adapters that are in
    memory, moves pins to them, and removes versions without a name from memory and evicted ones from the engine. It
    also keeps the catalogue, from which listings are answered.
    Adapters whose files were changed in place are taken out of memory and refused. While a store can't be
    reached, nothing changes: what is on this machine is served.

    Args:
        adapters: Names to adapters.
        loop: Runs the engine.
        seconds: Interval between two checks.
    """

    def __init__(self, adapters: AdapterRegistry, loop: EngineLoop, seconds: float) -> None:
        self._adapters = adapters
        self._loop = loop
        self._seconds = seconds
        self._names = adapters.names()
        self._former: set[str] = set()  # digests of former versions that may still be in memory
        self._checking = asyncio.Lock()
        self._ready = asyncio.Event()

    async def run(self) -> None:
        """Make the catalogue, and check at intervals, until cancelled."""
        try:
            async with self._checking:
                await asyncio.to_thread(self._adapters.catalogue.update, self._names)
        except Exception:
            _log.exception("the catalogue is incomplete; it is made again in %g seconds", self._seconds)
        self._ready.set()
        await repeat(self._check_now, self._seconds, "following the store")

    async def _check_now(self) -> None:
        try:
            await self.check()
        except (ManytuneError, OSError, HttpError) as error:
            if self._adapters.store_names.unreachable is None:  # else it was logged when it began
                _log.warning("the store can't be checked for new versions: %s", error)

    async def ready(self) -> None:
        """Wait until the store has been looked at once, so that listings are complete."""
        await self._ready.wait()

    async def check(self) -> dict[str, list[str]]:
        """Follow changes of the store; returns the names that were added, updated and removed since the last time."""
        async with self._checking:
            before, now = self._names, await asyncio.to_thread(self._adapters.store_names.follow)
            self._names = now
            await asyncio.to_thread(self._adapters.catalogue.update, now)
            changed = changes(before, now)
            if any(changed.values()):
                await asyncio.to_thread(self._follow, changed, before)
            self._former = (self._former & set(self._adapters.cache.resident)) - set(now.values())
            for digest in self._former:
                self._adapters.drop(digest)
            await asyncio.to_thread(self._adapters.note_changed_files)
            await self.forget_absent()
            return changed

    async def forget_absent(self) -> None:
        """Remove adapters that aren't in memory any more from the engine."""
        await asyncio.to_thread(self._adapters.forget_absent)
        resident = set(self._adapters.cache.resident)

        def forget(engine: AnyEngine) -> None:
            for digest in engine.adapters:
                if digest not in resident:
                    engine.remove_adapter(digest)

        if self._loop.is_ready:
            await self._loop.call(forget)

    def _follow(self, changed: dict[str, list[str]], before: dict[str, str]) -> None:
        resident = set(self._adapters.cache.resident)
        for name in changed["updated"]:
            try:
                if self._adapters.is_pinned(name):
                    self._adapters.pin(name)
                elif before[name] in resident:
                    self._adapters.load(name)
            except CacheFullError as error:
                _log.warning("the new version of %s isn't loaded until it is requested: %s", name, error)
            except Exception as error:
                _log.error("the new version of %s can't be used: %s", name, error)
        for name in changed["removed"]:
            self._adapters.unpin(name)
        self._former.update(before[name] for name in (*changed["updated"], *changed["removed"]))
