"""What a server does next to answering, such as following its store: it goes on until the server stops."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

_log = logging.getLogger(__name__)


@asynccontextmanager
async def in_background(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Have work run for the length of a block, at whose end it is cancelled.

    What ends by an error before that is logged at once, with its traceback; the block doesn't get the error.
    """
    tasks = [asyncio.create_task(one) for one in work]
    for task in tasks:
        task.add_done_callback(_report)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def repeat(step: Callable[[], Awaitable[None]], seconds: float, what: str) -> None:
    """Repeat a step at intervals, until cancelled; one that fails is logged, and is tried again.

    Args:
        step: What to do; what it has to say of failures that are to be expected is its own matter.
        seconds: The interval.
        what: What it is, as the beginning of a sentence.
    """
    while True:
        await asyncio.sleep(seconds)
        try:
            await step()
        except Exception:
            _log.exception("%s has failed; it is tried again in %g seconds", what, seconds)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("a part of the server has ended; restart the server", exc_info=error)
