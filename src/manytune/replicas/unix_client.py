"""Requests to a replica that listens on a Unix socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2

from manytune.replicas.contract import OF_CONNECTIONS, Answer, Forwarded, ReplicaLostError

#: Less than a replica keeps an idle connection, so that none is used that is being closed.
_IDLE_SECONDS = 2.0
_CONNECT_SECONDS = 10.0


class UnixClient:
    """A replica's client. To be used on one event loop.

    Args:
        replica: The replica's name.
        socket: Where it listens.
    """

    def __init__(self, replica: str, socket: Path) -> None:
        self._replica = replica
        limits = httpx2.Limits(
            max_connections=None, max_keepalive_connections=64, keepalive_expiry=_IDLE_SECONDS
        )
        self._client = httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(uds=str(socket), limits=limits),
            # An answer may take as long as it takes: the client that waits for it says when it is enough.
            timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),
            trust_env=False,
        )
        self._client.headers.clear()

    @asynccontextmanager
    async def ask(self, request: Forwarded) -> AsyncIterator[Answer]:
        """Send a request; leaving the block before the answer's end hangs up, which cancels it.

        Raises:
            ReplicaLostError: The replica can't be reached, or ended before it answered.
        """
        url = httpx2.URL("http://localhost").copy_with(raw_path=request.target.encode("ascii"))
        message = self._client.build_request(
            request.method, url, headers=list(request.headers), content=request.body
        )
        try:
            response = await self._client.send(message, stream=True)
        except httpx2.TransportError as error:
            raise ReplicaLostError(self._replica, _reason(error)) from error
        try:
            yield _Answer(self._replica, response)
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()


class _Answer:
    def __init__(self, replica: str, response: httpx2.Response) -> None:
        self.replica = replica
        self.status = response.status_code
        self.headers = tuple(
            (name, value) for name, value in response.headers.raw if name.lower() not in OF_CONNECTIONS
        )
        self._response = response

    async def chunks(self) -> AsyncIterator[bytes]:
        """See `Answer`."""
        try:
            async for chunk in self._response.aiter_raw():
                yield chunk
        except httpx2.TransportError as error:
            raise ReplicaLostError(self.replica, _reason(error)) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
