"""What fails next to answering is said at once, and what can be tried again is."""

from __future__ import annotations

import asyncio
import logging

import pytest

from manytune.server.background import in_background, repeat


def test_a_step_that_fails_is_logged_and_repeated(caplog: pytest.LogCaptureFixture) -> None:
    async def serve() -> int:
        steps, done = 0, asyncio.Event()

        async def step() -> None:
            nonlocal steps
            steps += 1
            if steps == 1:
                raise KeyError("a defect")
            done.set()

        async with in_background(repeat(step, 0.001, "following the store")):
            await asyncio.wait_for(done.wait(), 10)
        return steps

    assert asyncio.run(serve()) >= 2
    (record,) = caplog.records
    assert record.getMessage() == "following the store has failed; it is tried again in 0.001 seconds"
    assert record.exc_info is not None and record.exc_info[0] is KeyError


def test_work_that_ends_by_an_error_is_logged_at_once_and_the_block_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        raise KeyError("a defect")

    async def forever() -> None:
        await asyncio.Event().wait()

    async def serve() -> list[str]:
        async with in_background(fail(), forever()):
            while not caplog.records:
                await asyncio.sleep(0)
            return [record.levelname for record in caplog.records]

    with caplog.at_level(logging.ERROR):
        assert asyncio.run(serve()) == ["ERROR"]
    assert len(caplog.records) == 1 and "a part of the server has ended" in caplog.text
