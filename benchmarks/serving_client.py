"""A server in a process of its own, and a client that costs as little as a client can: both cores are the server's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import family


@dataclass
class Server:
    """A running server.

    Attributes:
        port: Where it listens.
        process: Its process.
        started_in: Seconds from its start until it was ready.
    """

    port: int
    process: subprocess.Popen[bytes]
    started_in: float

    def memory(self) -> int:
        """Bytes of memory that it has for itself now, without mapped files; 0 where the system doesn't say."""
        return _status(self.process.pid, "RssAnon")

    def peak_memory(self) -> int:
        """The most that each of its processes has had, in sum."""
        return sum(_status(process, "VmHWM") for process in family(self.process.pid))


@contextmanager
def served(
    command: Sequence[str], *, port: int, ready: str, log: Path, **environment: str
) -> Iterator[Server]:
    """Run a server until the block ends.

    Args:
        command: What starts it.
        port: Where it will listen.
        ready: The path that answers 200 when it is ready.
        log: Takes its output.
        environment: Next to this process' own.
    """
    began = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **environment})
        try:
            while not asyncio.run(_is_ready(port, ready)):
                if process.poll() is not None or time.perf_counter() - began > 300:
                    sys.exit(f"{command[0]} didn't start:\n" + log.read_text()[-2000:])
                time.sleep(0.05)
            yield Server(port, process, time.perf_counter() - began)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Reply:
    """An answer as it came.

    Attributes:
        status: Of HTTP.
        body: All of it; of a stream nothing.
        events: Of a stream.
        times: When they came, in seconds of `perf_counter`.
    """

    status: int
    body: Any = None
    events: list[Any] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


async def call(
    port: int, method: str, path: str, body: Any = None, *, key: str = "", stop_after: int | None = None
) -> Reply:
    """One request on a connection of its own.

    Args:
        port: Of the server on this machine.
        method: Of HTTP.
        path: With its slash.
        body: Sent as JSON; bytes as they are.
        key: The API key.
        stop_after: Hang up after so many events of a stream.
    """
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    async with _connection(port) as (reader, writer):
        authorization = f"Authorization: Bearer {key}\r\n" if key else ""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{authorization}Content-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + content)
        await writer.drain()
        status, headers = await _head(reader)
        if "text/event-stream" in headers.get("content-type", ""):
            reply = Reply(status)
            async for event in _events(reader):
                reply.events.append(event)
                reply.times.append(time.perf_counter())
                if stop_after is not None and len(reply.events) > stop_after:
                    break
            return reply
        raw = await reader.read()
        if headers.get("transfer-encoding") == "chunked":
            raw = b"".join(_chunks(raw))
        is_json = "json" in headers.get("content-type", "")
        return Reply(status, json.loads(raw) if is_json else raw.decode())


# -- parts


@asynccontextmanager
async def _connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    try:
        yield reader, writer
    finally:
        writer.close()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    return int(first.split()[1]), {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
    }


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[Any]:
    """The events up to the end of the stream; chunks may end anywhere, but a line of data is within one."""
    async for line in reader:
        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
            yield json.loads(line[6:])


def _chunks(raw: bytes) -> Iterator[bytes]:
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        yield raw[: int(size, 16)]
        raw = raw[int(size, 16) + 2 :]


async def _is_ready(port: int, path: str) -> bool:
    try:
        return (await call(port, "GET", path)).status == 200
    except (OSError, asyncio.IncompleteReadError):
        return False


def _status(process: int, name: str) -> int:
    file = Path(f"/proc/{process}/status")
    if not file.exists():
        return 0
    line = next((line for line in file.read_text().splitlines() if line.startswith(name)), f"{name} 0")
    return int(line.split()[1]) * 1024
