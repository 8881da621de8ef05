"""What the watcher does where something fails that nobody foresaw."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from manytune.server.adapters.watcher import Watcher
from manytune.server.background import in_background


def test_a_catalogue_that_fails_at_first_is_said_and_the_store_is_followed_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    updates: list[dict[str, str]] = []

    def update(names: dict[str, str]) -> None:
        updates.append(names)
        if len(updates) == 1:
            raise RuntimeError("a defect")

    adapters: Any = SimpleNamespace(
        names=dict,
        catalogue=SimpleNamespace(update=update),
        store_names=SimpleNamespace(follow=dict, unreachable=None),
        cache=SimpleNamespace(resident=()),
        note_changed_files=lambda: None,
        forget_absent=lambda: None,
    )
    loop: Any = SimpleNamespace(is_ready=False)

    async def serve() -> None:
        watcher = Watcher(adapters, loop, 0.001)
        async with in_background(watcher.run()):
            await asyncio.wait_for(watcher.ready(), 10)
            while len(updates) < 3:
                await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(serve(), 10))
    assert [record.getMessage() for record in caplog.records] == [
        "the catalogue is incomplete; it is made again in 0.001 seconds"
    ]
