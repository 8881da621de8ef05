"""Work for a client that has gone."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from manytune.server.disconnects import unless_disconnected
from manytune.server.http_errors import HttpError


class Gone:
    """A request whose client has disconnected."""

    async def receive(self) -> dict[str, Any]:
        return {"type": "http.disconnect"}


def test_work_is_cancelled_and_what_fails_while_it_ends_is_reported() -> None:
    reported: list[object] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("can't release")

    async def serve() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: reported.append(context["exception"])
        )
        with pytest.raises(HttpError) as refused:
            await unless_disconnected(Gone(), work())  # type: ignore[arg-type]
        assert refused.value.status == 499
        gc.collect()

    asyncio.run(serve())
    assert [str(one) for one in reported] == ["can't release"]


def test_a_failure_of_the_work_itself_is_its_callers() -> None:
    async def work() -> None:
        raise ValueError("its own")

    class Waiting:
        async def receive(self) -> dict[str, Any]:
            await asyncio.Event().wait()
            raise AssertionError

    async def serve() -> None:
        with pytest.raises(ValueError, match="its own"):
            await unless_disconnected(Waiting(), work())  # type: ignore[arg-type]

    asyncio.run(serve())
