"""An application called without a socket: a request in, the answer's head and the parts of its body out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import unquote

from starlette.types import ASGIApp, Message

from manytune.replicas.contract import OF_CONNECTIONS, Forwarded, Head


async def call(app: ASGIApp, request: Forwarded, replica: str) -> AsyncIterator[Head | bytes]:
    """The head of an application's answer, and then its body; closing the iterator is as if the client hung up.

    Args:
        app: The application, whose life has begun.
        request: The request.
        replica: What to call the replica in the head.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    gone = asyncio.Event()
    arriving: list[Message] = [{"type": "http.request", "body": request.body, "more_body": False}]

    async def receive() -> Message:
        if arriving:
            return arriving.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(_scope(request), receive, messages.put)
        finally:
            messages.put_nowait(None)

    running = asyncio.create_task(run())
    try:
        while (message := await messages.get()) is not None:
            if message["type"] == "http.response.start":
                pairs = ((bytes(name), bytes(value)) for name, value in message.get("headers", ()))
                headers = tuple(pair for pair in pairs if pair[0].lower() not in OF_CONNECTIONS)
                yield Head(replica, message["status"], headers)
            elif message.get("body"):
                yield message["body"]
        await running
    finally:
        gone.set()
        running.cancel()
        await asyncio.wait((running,))  # asyncio reports what fails once nobody reads the answer


def _scope(request: Forwarded) -> dict[str, object]:
    path, _, query = request.target.partition("?")
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in request.headers]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "root_path": "",
        "headers": [*headers, (b"content-length", str(len(request.body)).encode())],
        "client": None,
        "server": None,
        "state": {},
    }
