"""Finding 9: connections that send little, read little or are many keep nobody else out, and don't fill the log."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from starlette.responses import StreamingResponse
from tests.server.api_client import ROOT
from tests.server.live import Live, live, until
from tests.server.world import app_of

from manytune.server.access.auth import Keys
from manytune.server.connections import ConnectionLimits, address_of
from manytune.server.logs import JsonLines, RateLimit

PATIENT = {"header_seconds": 3600.0, "read_seconds": 3600.0, "sweep_seconds": 0.01}
BODY = json.dumps({"model": "one", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1})
HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    f"Content-Length: {len(BODY)}\r\n"
)
UNFINISHED = {
    "nothing": b"",
    "half a request line": b"POST /v1/chat",
    "headers without an end": HEAD.encode(),
    "no body": f"{HEAD}\r\n".encode(),
    "half a body": f"{HEAD}\r\n{BODY[:9]}".encode(),
    "idle after an answer": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.fixture
def opened() -> Iterator[Callable[[int, bytes], socket.socket]]:
    """Opens connections to a port, and sends something on them."""
    with ExitStack() as stack:

        def connect(port: int, content: bytes = b"") -> socket.socket:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            connection.sendall(content)
            return connection

        yield connect


def is_ended(connection: socket.socket) -> bool:
    """Whether the server has ended a connection, of which everything is read."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def healthz(server: Live) -> bytes:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    with connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("sent", UNFINISHED)
def test_many_connections_without_a_whole_request_keep_nobody_out(
    base, store, opened, watched, sent: str
) -> None:
    limits = ConnectionLimits(most=8, most_of_address=8, **PATIENT)
    with live(app_of(base, store), limits) as server, watched(server.port):
        crowd = [opened(server.port, UNFINISHED[sent]) for _ in range(40)]
        assert healthz(server).startswith(b"HTTP/1.1 200")
        answer = server.post("/v1/chat/completions", json.loads(BODY))
        assert answer.status == 200 and answer.read()
        assert all(is_ended(connection) for connection in crowd[:20])  # they made place
        for connection in crowd:
            connection.close()  # or the server, as it ends, would wait for their requests


@pytest.mark.parametrize("sent", ["nothing", "half a request line", "headers without an end"])
def test_headers_have_to_arrive_in_time(base, store, opened, sent: str) -> None:
    limits = ConnectionLimits(**{**PATIENT, "header_seconds": 0.05})
    with live(app_of(base, store), limits) as server:
        assert is_ended(opened(server.port, UNFINISHED[sent]))
        again = opened(server.port, UNFINISHED["idle after an answer"])
        while b"ok\n" not in again.recv(65536):
            pass
        again.sendall(b"GET /hea")  # the second request of a connection, too
        assert is_ended(again)


def test_one_address_has_its_own_limit(base, store, opened) -> None:
    limits = ConnectionLimits(most=100, most_of_address=3, **PATIENT)
    with live(app_of(base, store), limits) as server:
        crowd = [opened(server.port, b"GET /") for _ in range(4)]
        assert is_ended(crowd[0])  # the oldest made place
        assert healthz(server).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("203.0.113.1", "203.0.113.1", True),
        ("203.0.113.1", "203.0.113.2", False),
        ("2001:db8::1", "2001:db8::2:3", True),  # one machine has as many as it likes
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:203.0.113.1", "203.0.113.1", True),
        ("::1", "::2", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
    ],
)
def test_whose_a_connection_is(one: str, other: str, is_same: bool) -> None:
    assert (address_of((one, 1)) == address_of((other, 2, 0, 0))) is is_same
    assert address_of("") == address_of(None) == ""


def test_a_client_that_stops_reading_is_let_go_and_its_adapter_released(base, store, opened) -> None:
    """The answer is larger than what the system keeps of it for a reader that is slow."""
    app = app_of(base, store, Keys([ROOT]))
    adapters = app.state.service.adapters

    async def parts() -> AsyncIterator[bytes]:
        model = adapters.acquire("one")
        try:
            while True:
                yield b"x" * (1 << 20)
                await asyncio.sleep(0)  # as between two tokens
        finally:
            adapters.release(model)

    app.add_api_route("/v1/endless", lambda: StreamingResponse(parts()))
    limits = ConnectionLimits(**{**PATIENT, "read_seconds": 0.2})
    with live(app, limits) as server:
        opened(server.port, b"GET /v1/endless HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer root\r\n\r\n")
        until(lambda: adapters.in_use(store.resolve("one")) == 1, 60)
        until(lambda: adapters.in_use(store.resolve("one")) == 0, 60)


def test_a_client_that_reads_slowly_but_reads_gets_its_answer(base, store, opened) -> None:
    limits = ConnectionLimits(**{**PATIENT, "read_seconds": 0.02, "slowest_read": 1})
    size = 8 << 20

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x" * size})

    with live(app, limits) as server:
        reader = opened(server.port, b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        found = 0
        while content := reader.recv(4 << 20):
            found += len(content)
    assert found > size


def test_headers_have_a_size(base, store, opened) -> None:
    with live(app_of(base, store), ConnectionLimits(**PATIENT)) as server:
        connection = opened(server.port, b"GET / HTTP/1.1\r\nX: ")
        with pytest.raises(OSError):  # answered and ended long before
            for _ in range(1000):
                connection.sendall(b"a" * 65536)


# -- the log


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def logged(flood: logging.Filter, lines: int, level: int = logging.WARNING, **fields: Any) -> list[str]:
    """The lines that pass, as they are written."""
    records = (
        logging.makeLogRecord({"levelno": level, "levelname": "X", "name": "uvicorn.error", "msg": "invalid"})
        for _ in range(lines)
    )
    found = []
    for record in records:
        record.fields = dict(fields)
        if flood.filter(record):
            found.append(JsonLines().format(record))
    return found


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING, logging.ERROR])
def test_a_flood_of_lines_is_limited_and_what_was_left_out_is_counted(level: int) -> None:
    clock = Clock()
    limit = RateLimit(clock)
    first = logged(limit, 20_000, level)
    assert 100 <= len(first) <= 1000
    clock.now += 1
    later = logged(limit, 1, level)
    assert json.loads(later[0])["suppressed"] == 20_000 - len(first)
    clock.now += 1
    assert "suppressed" not in json.loads(logged(limit, 1, level)[0])


def test_a_flood_of_errors_takes_nothing_from_the_requests_lines() -> None:
    limit = RateLimit(Clock())
    logged(limit, 20_000, logging.ERROR)
    assert len(logged(limit, 50, logging.INFO)) == 50


def test_a_line_is_short_whatever_the_client_wrote() -> None:
    limit = RateLimit(Clock())
    (line,) = logged(limit, 1, model="m" * 1_000_000, models=["m" * 1000] * 1000, path="/" + "p" * 20_000)
    assert len(line) < 20_000 and "1,000,000 characters" in line


def test_the_systems_own_lines_about_sockets_are_limited_too() -> None:
    from manytune.server.logs import log_to_stderr

    loggers = [logging.getLogger(name) for name in ("manytune", "uvicorn", "asyncio")]
    before = [(one.handlers[:], one.level, one.propagate) for one in loggers]
    try:
        log_to_stderr()
        for one in loggers:
            (handler,) = one.handlers
            assert any(isinstance(limit, RateLimit) for limit in handler.filters) and not one.propagate
    finally:
        for one, (handlers, level, propagate) in zip(loggers, before, strict=True):
            one.handlers[:], one.propagate = handlers, propagate
            one.setLevel(level)
