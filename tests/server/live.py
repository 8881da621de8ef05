"""A server on a socket, for what a test client can't do: hang up, stop, read while it is written."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from manytune.server.connections import ConnectionLimits
from manytune.server.listening import web_server


class Live:
    """A running server."""

    def __init__(self, server: uvicorn.Server, thread: threading.Thread, port: int) -> None:
        self.server = server
        self.thread = thread
        self.port = port
        self._opened: list[Any] = []

    def post(self, path: str, body: dict[str, Any], **headers: str) -> http.client.HTTPResponse:
        """The response, of which nothing has been read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.connect()
        self._opened += [connection, connection.sock]
        content = json.dumps(body)
        connection.request("POST", path, content, {"content-type": "application/json", **headers})
        response = connection.getresponse()
        self._opened.insert(0, response)
        return response

    def hang_up(self) -> None:
        """Close all connections, read or not."""
        for one in self._opened:
            one.close()
        self._opened.clear()


def events_of(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The events of a stream, as they come."""
    for line in response:
        if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
            yield json.loads(line[6:])


@contextmanager
def live(app: Any, limits: ConnectionLimits | None = None) -> Iterator[Live]:
    """Serve an application from a thread."""
    server = web_server(app, host="127.0.0.1", port=0, drain_seconds=4, limits=limits)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    running = Live(server, thread, server.servers[0].sockets[0].getsockname()[1])
    try:
        yield running
    finally:
        running.hang_up()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def until(holds: Any, seconds: float = 20) -> None:
    """Wait for something that must come true."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)
