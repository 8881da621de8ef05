"""Responses with answers: whole, or as server-sent events."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from manytune.engine.request import FinishReason, Output
from manytune.server.answers.formats import DONE, PartialAnswer, event
from manytune.server.http_errors import HttpError
from manytune.server.logs import PROMPTS
from manytune.server.service import NOT_FINITE, Answers, Service

_log = logging.getLogger(PROMPTS)

#: Reasons for an answer's end that are errors of the request.
FAILURES = ("failed", "constraint", "memory")
OUT_OF_MEMORY = "the answer ended because the server has no memory left for it; try again shortly."
NO_TOKEN_FITS = "the answer can't go on: its grammar allows no token here, or is too complex at this point."  # noqa: S105

#: Turns an event into the chunk that the client gets, if any: index of the answer, the event, and the answer so far.
ToChunk = Callable[[int, Output, PartialAnswer], dict[str, Any] | None]


async def collect(service: Service, http: Request, answers: Answers) -> list[PartialAnswer]:
    """All answers, when they are complete.

    Raises:
        HttpError: The server stopped before that, or all answers failed.
    """
    found = answers.partial()
    try:
        async for index, output in answers:
            found[index].add(output)
    finally:
        answers.close()
    if any(one.reason in (None, "cancelled") for one in found):
        raise HttpError(503, "the answer was cancelled.", code="unavailable")
    if all(one.reason in FAILURES for one in found):
        raise failed(found[0].reason)
    _log_answers(service, http, found)
    return found


def failed(reason: FinishReason | None) -> HttpError:
    """There is no answer: the model's logits are NaN or Inf, its grammar allows no token, or there is no memory."""
    if reason == "memory":
        return HttpError(503, OUT_OF_MEMORY, code="out_of_memory", retry_after=5)
    if reason == "constraint":
        return HttpError(400, NO_TOKEN_FITS, code="invalid_value")
    return HttpError(409, NOT_FINITE, code="adapter_unusable", param="model")


def stream(
    service: Service,
    http: Request,
    answers: Answers,
    *,
    opening: Sequence[dict[str, Any]],
    to_chunk: ToChunk,
    closing: Callable[[list[PartialAnswer]], dict[str, Any] | None],
) -> StreamingResponse:
    """A stream of answers as they are generated.

    Args:
        service: The parts of the server.
        http: The request.
        answers: The answers.
        opening: Chunks that are sent at once.
        to_chunk: Makes a chunk of an event.
        closing: Makes the last chunk, if any, of the complete answers.
    """

    async def body() -> AsyncIterator[str]:
        found = answers.partial()
        try:
            for chunk in opening:
                yield event(chunk)
            async for index, output in answers:
                if output.finish_reason in FAILURES and len(found) == 1:
                    raise failed(output.finish_reason)
                part = to_chunk(index, output, found[index])
                if part is not None:
                    yield event(part)
            last = closing(found)
            if last is not None:
                yield event(last)
            yield DONE
            _log_answers(service, http, found)
        except HttpError as error:
            yield event(error.body())
        finally:
            answers.close()

    # Proxies must not buffer the stream.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(body(), media_type="text/event-stream", headers=headers)


def _log_answers(service: Service, http: Request, answers: Sequence[PartialAnswer]) -> None:
    """Add the answers' tokens to the request's log line; log their texts if the operator wants that."""
    log_fields = http.state.log_fields
    log_fields["completion_tokens"] = sum(one.usage.completion_tokens for one in answers)
    if service.settings.log_prompts:
        fields = {"request_id": log_fields["request_id"], "answers": [one.text for one in answers]}
        _log.info("answers", extra={"fields": fields})
