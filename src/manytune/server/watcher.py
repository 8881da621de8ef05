"""Looks at the store for new versions, so that their first request doesn't wait, and former ones leave memory."""

from __future__ import annotations

import asyncio
import logging

from manytune.errors import CacheFullError, ManytuneError
from manytune.server.adapters import Adapters
from manytune.server.http_errors import Refusal
from manytune.server.loop import AnyEngine, EngineLoop

_log = logging.getLogger(__name__)


class Watcher:
    """Compares the store's names with those that it saw before.

    A request finds the present version of its adapter by itself. The watcher brings new versions of what is in memory
    there, too, moves pins to them, and lets go what no name stands for any more and what the cache has dropped.

    Args:
        adapters: Names to adapters.
        loop: Runs the engine.
        seconds: How often to look.
    """

    def __init__(self, adapters: Adapters, loop: EngineLoop, seconds: float) -> None:
        self._adapters = adapters
        self._loop = loop
        self._seconds = seconds
        self._seen = adapters.names()
        self._former: set[str] = set()  # versions that may still be in memory, as requests were using them
        self._looking = asyncio.Lock()

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await self.look()
            except (ManytuneError, OSError, Refusal) as error:
                _log.warning("the store couldn't be followed: %s", error)

    async def look(self) -> dict[str, list[str]]:
        """What has come, changed and gone since the last time, by name."""
        async with self._looking:
            before, now = self._seen, await asyncio.to_thread(self._adapters.names)
            self._seen = now
            changed = {
                "added": sorted(now.keys() - before.keys()),
                "updated": sorted(name for name in now.keys() & before.keys() if now[name] != before[name]),
                "removed": sorted(before.keys() - now.keys()),
            }
            if any(changed.values()):
                _log.info("the store has changed", extra={"noted": changed})
                await asyncio.to_thread(self._follow, changed, before)
            self._former = (self._former & set(self._adapters.cache.resident)) - set(now.values())
            for own in self._former:
                self._adapters.drop(own)
            await self.forget_absent()
            return changed

    async def forget_absent(self) -> None:
        """Have the engine forget adapters that aren't in memory any more."""
        resident = set(self._adapters.cache.resident)

        def forget(engine: AnyEngine) -> None:
            for own in engine.adapters:
                if own not in resident:
                    engine.remove_adapter(own)

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
                _log.warning("the new version of %s waits until it is asked for: %s", name, error)
            except Exception as error:
                _log.error("the new version of %s can't be used: %s", name, error)
        for name in changed["removed"]:
            self._adapters.unpin(name)
        self._former.update(before[name] for name in (*changed["updated"], *changed["removed"]))
