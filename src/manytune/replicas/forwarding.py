"""One request, sent to a replica and answered as it answers; sent once more if the replica is lost before that.

A whole answer is passed on when it is complete, so a request for one can be sent to another replica at any time before.
A stream is passed on as it is written; if its replica is lost, it ends with an error.
"""

from __future__ import annotations

import json
import logging

from starlette.types import Send

from manytune.replicas.contract import (
    Answer,
    Forwarded,
    ReplicaLostError,
    Replicas,
    Route,
    WholeAnswer,
    read_whole,
)
from manytune.server.http_errors import HttpError

_log = logging.getLogger(__name__)
#: A request that ends the replica that runs it isn't tried on all of them.
_ATTEMPTS = 2
_STREAM = b"text/event-stream"
_LOST = "the replica that was writing this answer has ended; send the request again."


async def forward(replicas: Replicas, request: Forwarded, route: Route, send: Send) -> bool:
    """Answer a request.

    Args:
        replicas: All of them.
        request: The request.
        route: Where it is to go.
        send: Takes the answer, as ASGI has it.

    Returns:
        Whether a replica has answered to the end.

    Raises:
        HttpError: No replica could answer; nothing has been sent.
    """
    for _ in range(_ATTEMPTS):
        try:
            async with replicas.ask(request, route) as answer:
                if _is_stream(answer):
                    return await _pass_on(answer, request, send)
                whole = await read_whole(answer)
            if not _has_given_up(whole):
                await send_whole(whole, send)
                return True
            lost = whole.replica
        except ReplicaLostError as error:
            _log.warning("%s; %s %s is sent to another", error, request.method, request.target)
            lost = error.replica
        route = route.without(lost)
    raise HttpError(
        503,
        f"{_ATTEMPTS} replicas ended while they had this request; try again shortly.",
        code="unavailable",
        retry_after=1,
    )


async def send_whole(answer: WholeAnswer, send: Send) -> None:
    """Send a complete answer."""
    await send({"type": "http.response.start", "status": answer.status, "headers": list(answer.headers)})
    await send({"type": "http.response.body", "body": answer.body})


async def _pass_on(answer: Answer, request: Forwarded, send: Send) -> bool:
    """Send a stream as it is written; whether it came to its end."""
    await send({"type": "http.response.start", "status": answer.status, "headers": list(answer.headers)})
    end, is_complete = b"\n\n", True
    try:
        async for chunk in answer.chunks():
            end = (end + chunk)[-2:]
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except ReplicaLostError as error:
        is_complete = False
        _log.warning("%s; the stream of %s ends with an error", error, request.target)
        last = json.dumps(HttpError(503, _LOST, code="unavailable").body(), separators=(",", ":"))
        opening = b"" if end == b"\n\n" else b"\n\n"  # it may have ended in the middle of an event
        await send(
            {"type": "http.response.body", "body": opening + f"data: {last}\n\n".encode(), "more_body": True}
        )
    await send({"type": "http.response.body", "body": b""})
    return is_complete


def _is_stream(answer: Answer) -> bool:
    kind = next((value for name, value in answer.headers if name.lower() == b"content-type"), b"")
    return kind.startswith(_STREAM)


def _has_given_up(answer: WholeAnswer) -> bool:
    """Whether it says that its replica is stopping, or that its engine has failed; see `EngineLoop.check_ready`."""
    if answer.status != 503:
        return False
    try:
        return bool(json.loads(answer.body)["error"]["code"] == "unavailable")
    except (ValueError, LookupError, TypeError):
        return False
