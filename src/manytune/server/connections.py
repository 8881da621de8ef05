"""Connections within limits: how many, how long a request may take to arrive, and how long an answer to be read.

uvicorn times the pause between two requests of a connection and nothing else: a client that never completes a
request's headers, or that stops reading, keeps its connection, its file and its answer's adapter for good. So each
connection is watched next to uvicorn's own protocol, which does all of the HTTP:

- a request's headers have to arrive within `header_seconds` of the connection, or of their first byte;
- an answer that isn't read at `slowest_read` bytes a second is given up: the connection is reset, which ends the
  request as if the client had disconnected;
- if there are as many connections as may be, a new one takes the place of one whose request hasn't arrived yet, or
  that has none, the oldest of the client address that has the most. So those who open connections and send nothing
  can't keep others out. Only if all have requests in work, the new one gets 503.

How long a body may take is the middleware's to say, and how many requests may be in work that of `places`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger(__name__)
_KEY = "manytune.connection"  # in the state of a request's scope
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\nRetry-After: 1\r\n\r\n"
)


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """What connections may take.

    Attributes:
        most: Connections at once.
        most_of_address: Connections at once of one client address.
        header_seconds: How long a request's headers may take.
        read_seconds: Interval in which a client has to have read what `slowest_read` demands.
        slowest_read: Bytes a second that a client has to read while there is something to read.
        sweep_seconds: Interval at which all of this is looked at.
    """

    most: int = 512
    most_of_address: int = 256
    header_seconds: float = 10.0
    read_seconds: float = 30.0
    slowest_read: int = 1024
    sweep_seconds: float = 1.0


class _HttpProtocol(Protocol):
    """Makes a connection's protocol, as uvicorn's configuration has it."""

    def __call__(
        self, *, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None
    ) -> asyncio.Protocol: ...


class Connections:
    """The connections of a server. To be used on its event loop.

    Args:
        limits: What they may take.
        most: How many there may be, if the system allows fewer than `limits.most`.
    """

    def __init__(self, limits: ConnectionLimits, *, most: int | None = None) -> None:
        self.limits = limits
        self._most = limits.most if most is None else most
        self._open: set[Connection] = set()
        self._of_address: Counter[str] = Counter()
        self._sweep: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def protocol(self, http: _HttpProtocol) -> Callable[..., asyncio.Protocol]:
        """The protocol of watched connections.

        Args:
            http: That of uvicorn which does the HTTP.
        """

        def make(
            *, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None
        ) -> asyncio.Protocol:
            connection = Connection(self)
            state = {**app_state, _KEY: connection}  # uvicorn hands a copy of it to each request
            connection.inner = http(config=config, server_state=server_state, app_state=state, _loop=_loop)
            return connection

        return make

    # -- for connections

    def admit(self, connection: Connection) -> bool:
        """Take a new connection, if need be in the place of one without a request in work. False to refuse it."""
        address = connection.address
        if self._of_address[address] >= self.limits.most_of_address:
            refused = not self._make_place(one for one in self._open if one.address == address)
        elif len(self._open) >= self._most:
            refused = not self._make_place(self._open)
        else:
            refused = False
        if refused:
            _log.warning("a connection was refused: all of %s have requests in work", len(self._open))
            return False
        self._open.add(connection)
        self._of_address[address] += 1
        if self._sweep is None:
            loop = asyncio.get_running_loop()
            self._sweep = loop.call_later(self.limits.sweep_seconds, self._look)
        return True

    def forget(self, connection: Connection) -> None:
        """Note that a connection has ended."""
        if connection in self._open:
            self._open.discard(connection)
            self._of_address[connection.address] -= 1
            self._of_address += Counter()  # drops entries at zero

    # -- parts

    def _make_place(self, among: Iterable[Connection]) -> bool:
        idle = [one for one in among if not one.is_in_work]
        if not idle:
            return False
        chosen = min(idle, key=lambda one: (-self._of_address[one.address], one.since))
        chosen.reset("a connection without a complete request made place for another")
        return True

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in list(self._open):
            connection.look(now)
        self._sweep = None
        if self._open:
            self._sweep = asyncio.get_running_loop().call_later(self.limits.sweep_seconds, self._look)


class Connection(asyncio.Protocol):
    """One connection: passes everything on to the protocol that does the HTTP, and watches how it goes.

    Args:
        owner: All of the server's.

    Attributes:
        inner: The protocol that does the HTTP.
        address: The client's, as `address_of` has it.
        since: When it last began to wait for a request.
        is_in_work: Whether a request has arrived whole and isn't answered yet.
    """

    inner: asyncio.Protocol

    def __init__(self, owner: Connections) -> None:
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._is_refused = False
        self._headers_since: float | None = None  # when what is to be a request began to arrive
        self._has_request = False  # whether its headers have arrived, and it isn't answered
        self._written = 0  # bytes of answers' bodies since the connection began
        self._read, self._read_since = 0, 0.0  # how many of them had been read at a time; 0.0 for no time
        self.address = ""
        self.since = 0.0
        self.is_in_work = False

    # -- asyncio's protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.address = address_of(transport.get_extra_info("peername"))
        self.since = self._headers_since = _now()
        if not self._owner.admit(self):
            self._is_refused = True
            transport.write(_REFUSAL)
            transport.close()
            return
        self.inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._is_refused:
            return
        if self._headers_since is None and not self._has_request:
            self._headers_since = _now()
        self.inner.data_received(data)

    def eof_received(self) -> bool | None:
        """See `asyncio.Protocol`."""
        return None if self._is_refused else self.inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._owner.forget(self)
        if not self._is_refused:
            self.inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        if not self._is_refused:
            self.inner.pause_writing()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        if not self._is_refused:
            self.inner.resume_writing()

    # -- for the requests on it

    def headers_arrived(self) -> None:
        """Note that a request has begun; its body may still be on its way."""
        self._headers_since = None
        self._has_request = True

    def request_arrived(self) -> None:
        """Note that a request is whole."""
        self.is_in_work = True

    def wrote(self, count: int) -> None:
        """Note that so many bytes of an answer were handed to the connection."""
        self._written += count

    def request_ended(self) -> None:
        """Note that a request has been answered, or given up."""
        self._has_request = self.is_in_work = False
        self.since = _now()

    # -- for the owner

    def look(self, now: float) -> None:
        """Reset it if its client takes too long."""
        limits = self._owner.limits
        if self._headers_since is not None and now - self._headers_since > limits.header_seconds:
            self.reset("a request's headers took too long to arrive")
            return
        unsent = 0 if self._transport is None else self._transport.get_write_buffer_size()
        read = self._written - unsent
        if not unsent:
            self._read_since = 0.0
        elif not self._read_since:
            self._read, self._read_since = read, now
        elif now - self._read_since >= limits.read_seconds:
            if read - self._read < limits.slowest_read * limits.read_seconds:
                self.reset("a client has stopped reading its answer")
            self._read, self._read_since = read, now

    def reset(self, reason: str) -> None:
        """End it now, with what is still to be sent."""
        _log.warning("%s", reason, extra={"fields": {"client": self.address}})
        self._owner.forget(self)
        if self._transport is not None:
            self._transport.abort()


class RequestsOnConnections:
    """Tells each connection how its requests go; the outermost layer of the application.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        connection: Connection | None = scope.get("state", {}).pop(_KEY, None)
        if connection is None:
            await self._app(scope, receive, send)
            return
        connection.headers_arrived()

        async def next_message() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                connection.request_arrived()
            return message

        async def answer(message: Message) -> None:
            is_body = message["type"] == "http.response.body"
            if is_body and not message.get("more_body", False):
                # Before it is sent: the next request may be there already, and begins then.
                connection.request_ended()
            await send(message)
            if is_body:
                connection.wrote(len(message.get("body", b"")))

        try:
            await self._app(scope, next_message, answer)
        except BaseException:
            connection.request_ended()
            raise


def address_of(peer: object) -> str:
    """Whose connection it is: an IPv4 address, or the 64 bits of an IPv6 address that one machine usually has."""
    if not isinstance(peer, tuple) or not peer:
        return ""
    try:
        address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except ValueError:
        return str(peer[0])
    if isinstance(address, ipaddress.IPv4Address) or address.is_loopback:
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), 64), strict=False))


def _now() -> float:
    return asyncio.get_running_loop().time()
