"""Sending answers: whole, or as server-sent events."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from manytune.engine.request import Output
from manytune.server.formats import DONE, Collected, event
from manytune.server.http_errors import Refusal
from manytune.server.service import NOT_FINITE, Answers, Service

_log = logging.getLogger("manytune.server.prompts")

#: Turns an event into what the client is sent, if anything: its place, the event, and the answer so far.
ToChunk = Callable[[int, Output, Collected], dict[str, Any] | None]


async def collect(service: Service, http: Request, answers: Answers, count: int) -> list[Collected]:
    """All answers, when they are complete.

    Raises:
        Refusal: The server stopped before that, or all answers failed.
    """
    found = [Collected() for _ in range(count)]
    try:
        async for place, output in answers:
            found[place].add(output, service.end_ids)
    finally:
        answers.close()
    if any(one.reason in (None, "cancelled") for one in found):
        raise Refusal(503, "the answer was cancelled.", code="unavailable")
    if all(one.reason == "failed" for one in found):
        raise failed()
    note(service, http, found)
    return found


def failed() -> Refusal:
    """There is no answer, as the adapter's values aren't finite."""
    return Refusal(409, NOT_FINITE, code="adapter_unusable", param="model")


def stream(
    service: Service,
    http: Request,
    answers: Answers,
    count: int,
    *,
    opening: Sequence[dict[str, Any]],
    to_chunk: ToChunk,
    closing: Callable[[list[Collected]], dict[str, Any] | None],
) -> StreamingResponse:
    """Answers as they come.

    Args:
        service: The server.
        http: The request.
        answers: To send.
        count: How many there are.
        opening: Sent at once.
        to_chunk: Makes the chunks.
        closing: Makes the last chunk.
    """

    async def body() -> AsyncIterator[str]:
        found = [Collected() for _ in range(count)]
        try:
            for chunk in opening:
                yield event(chunk)
            async for place, output in answers:
                if output.finish_reason == "failed" and count == 1:
                    raise failed()
                made = to_chunk(place, output, found[place])
                if made is not None:
                    yield event(made)
            last = closing(found)
            if last is not None:
                yield event(last)
            yield DONE
            note(service, http, found)
        except Refusal as refusal:
            yield event(refusal.body())
        finally:
            answers.close()

    # Nothing on the way may gather what should be seen as it comes.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(body(), media_type="text/event-stream", headers=headers)


def note(service: Service, http: Request, found: Sequence[Collected]) -> None:
    """What the request's line of log says about its answers."""
    http.state.noted["completion_tokens"] = sum(one.usage.completion_tokens for one in found)
    if service.settings.log_prompts:
        _log.info(
            "answers",
            extra={
                "noted": {
                    "request_id": http.state.noted["request_id"],
                    "answers": [one.text for one in found],
                }
            },
        )
