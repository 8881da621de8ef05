"""Work for a client that has gone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from manytune.server.disconnects import unless_disconnected
from manytune.server.http_errors import HttpError


class Waiting:
    """A request whose client disconnects at some time, or never."""

    def __init__(self, gone: asyncio.Event | None = None) -> None:
        self._gone = gone or asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}


def test_work_for_a_client_that_is_gone_is_cancelled_and_what_fails_then_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def serve() -> None:
        begun = asyncio.Event()

        async def work() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                raise RuntimeError("can't release")

        with pytest.raises(HttpError) as refused:
            await unless_disconnected(Waiting(begun), work())  # type: ignore[arg-type]
        assert refused.value.status == 499

    asyncio.run(serve())
    (record,) = caplog.records
    assert record.exc_info is not None and str(record.exc_info[1]) == "can't release"


def test_a_failure_of_the_work_itself_is_its_callers() -> None:
    async def work() -> None:
        raise ValueError("its own")

    async def serve() -> None:
        with pytest.raises(ValueError, match="its own"):
            await unless_disconnected(Waiting(), work())  # type: ignore[arg-type]

    asyncio.run(serve())
