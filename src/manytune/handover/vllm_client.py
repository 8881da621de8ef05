"""HTTP to vLLM through its Unix socket: a connection a request, which ends the request when it is closed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h11

from manytune.server.http_errors import HttpError

_CHUNK = 1 << 16


@dataclass(frozen=True)
class VllmAnswer:
    """An answer whose body is still to come.

    Attributes:
        status: Of HTTP.
        chunks: The body as it comes.
    """

    status: int
    chunks: AsyncIterator[bytes]

    async def content(self) -> bytes:
        """All of the body."""
        return b"".join([chunk async for chunk in self.chunks])


class VllmClient:
    """Asks a vLLM.

    Args:
        socket: Where it listens.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = str(socket)

    @asynccontextmanager
    async def ask(self, method: str, path: str, body: Any = None) -> AsyncIterator[VllmAnswer]:
        """One request; when the block ends, the connection is closed, and vLLM gives up what it hasn't answered.

        Args:
            method: Of HTTP.
            path: With its slash.
            body: Sent as JSON; None for no body.

        Raises:
            HttpError: 503 if vLLM can't be reached, or ends in the middle of its answer.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket)
        except OSError as error:
            raise _unreachable() from error
        try:
            wire = h11.Connection(h11.CLIENT)
            content = b"" if body is None else json.dumps(body).encode()
            headers = [("Host", "vllm"), ("Connection", "close"), ("Content-Length", str(len(content)))]
            if body is not None:
                headers.append(("Content-Type", "application/json"))
            request = h11.Request(method=method, target=path, headers=headers)
            for event in (request, h11.Data(data=content), h11.EndOfMessage()):
                writer.write(wire.send(event) or b"")
            await writer.drain()
            head = await _next(wire, reader)
            while isinstance(head, h11.InformationalResponse):
                head = await _next(wire, reader)
            if not isinstance(head, h11.Response):
                raise _unreachable()
            yield VllmAnswer(head.status_code, _body(wire, reader))
        except OSError as error:
            raise _unreachable() from error
        finally:
            writer.close()

    async def json(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and content of an answer; content that isn't JSON as text."""
        async with self.ask(method, path, body) as answer:
            content = await answer.content()
        try:
            return answer.status, json.loads(content)
        except ValueError:
            return answer.status, content.decode(errors="replace")

    async def is_ready(self) -> bool:
        """Whether it answers requests."""
        try:
            status, _ = await self.json("GET", "/health")
        except HttpError:
            return False
        return status == 200


async def _next(wire: h11.Connection, reader: asyncio.StreamReader) -> Any:
    while True:
        try:
            event = wire.next_event()
            if event is not h11.NEED_DATA:
                return event
            wire.receive_data(await reader.read(_CHUNK))
        except (h11.RemoteProtocolError, OSError) as error:
            raise _unreachable() from error


async def _body(wire: h11.Connection, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while isinstance(event := await _next(wire, reader), h11.Data):
        yield bytes(event.data)
    if not isinstance(event, h11.EndOfMessage):
        raise _unreachable()


def _unreachable() -> HttpError:
    return HttpError(
        503,
        "the engine behind this server doesn't answer; try again shortly.",
        code="unavailable",
        retry_after=5,
    )
