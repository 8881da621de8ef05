"""The outputs of requests on their way from the engine's thread to those who wait for them on the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

from manytune.engine.request import Output


@dataclass(frozen=True)
class Event:
    """What goes to a stream.

    Attributes:
        stream: Where it goes.
        request_id: Of which request it is.
        what: An output, or why there are no more.
        at: When it was there, in seconds of `time.perf_counter`.
    """

    stream: Stream
    request_id: str
    what: Output | BaseException
    at: float


class Stream:
    """The outputs of some requests as they are generated. It must be used on the event loop that submitted them.

    Args:
        cancel: Ends a request that hasn't ended.
        is_whole: Whether nobody waits for an output before the last one of its request.

    Attributes:
        time: When the output that was last yielded was there, in seconds of `time.perf_counter`.
    """

    def __init__(self, cancel: Callable[[str], None], *, is_whole: bool = False) -> None:
        self._cancel = cancel
        self._open: set[str] = set()
        self._events: asyncio.Queue[tuple[float, Output | BaseException | None]] = asyncio.Queue()
        self.is_whole = is_whole
        self.time = 0.0

    async def __aiter__(self) -> AsyncIterator[Output]:
        while self._open:
            self.time, event = await self._events.get()
            if isinstance(event, BaseException):
                raise event
            if event is None:  # closed
                return
            if event.finish_reason is not None:
                self._open.discard(event.request_id)
            yield event

    def close(self) -> None:
        """Cancel the requests that haven't ended; their places are free after the present step."""
        for request_id in self._open:
            self._cancel(request_id)
        self._open.clear()
        self._events.put_nowait((time.perf_counter(), None))

    def expect(self, request_ids: Iterable[str]) -> None:
        """Yield what comes of these requests, until they have ended."""
        self._open.update(request_ids)

    def put(self, event: Event) -> None:
        """Yield this after what came before."""
        self._events.put_nowait((event.at, event.what))
