"""Work for a client that may hang up before it is done."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from manytune.server.http_errors import HttpError

_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


async def unless_disconnected(http: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """What the work gives; it is cancelled as soon as the client disconnects.

    Args:
        http: The request, whose body has been read.
        work: What to do for it.

    Raises:
        HttpError: 499, which nobody will read: the client has disconnected.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(http))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        working.add_done_callback(_report)
        raise HttpError(499, "the client disconnected.", code="disconnected")
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.wait((working,))  # it releases what it holds


def _report(ended: asyncio.Future[Any]) -> None:
    """Log what failed while work was ended, since nobody gets its result."""
    if not ended.cancelled() and (error := ended.exception()) is not None:
        _log.error("work for a client that disconnected has failed", exc_info=error)


async def _disconnected(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
