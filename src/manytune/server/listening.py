"""The web server that an application is run by: uvicorn, with connections within limits."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from pathlib import Path
from typing import cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from manytune.errors import ServeError
from manytune.server.connections import ConnectionLimits, Connections, RequestsOnConnections

_IDLE_SECONDS = 5  # between two requests of a connection
_HEADER_BYTES = 16 << 10
_ACCEPTED_AT_ONCE = 128  # connections that the system keeps for the server, and that it takes in one go
_OTHER_FILES = 512  # that may be open: libraries, adapters, connections that are being closed


def web_server(
    app: ASGIApp,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    unix_socket: Path | None = None,
    header_bytes: int = _HEADER_BYTES,
    drain_seconds: float,
    limits: ConnectionLimits | None = None,
) -> uvicorn.Server:
    """A server that hasn't started.

    Args:
        app: The application.
        host: The address to listen on.
        port: The port; 0 for any free one.
        unix_socket: Where to listen instead; who may enter its directory may connect.
        header_bytes: Size of the largest head of a request.
        drain_seconds: How long running requests may continue when it stops.
        limits: What connections may take; None for the defaults. There are never more than the system has files for.
    """
    limits = ConnectionLimits() if limits is None else limits
    connections = Connections(limits, most=_files_for(limits.most))
    config = uvicorn.Config(
        RequestsOnConnections(app),
        host=host,
        port=port,
        uds=None if unix_socket is None else str(unix_socket),
        loop="asyncio",  # whose transports connections are made for, also where uvloop is installed
        http=cast("type[asyncio.Protocol]", connections.protocol(H11Protocol)),
        ws="none",
        interface="asgi3",
        log_config=None,
        server_header=False,
        backlog=_ACCEPTED_AT_ONCE,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=int(drain_seconds) + 1,
        h11_max_incomplete_event_size=header_bytes,
    )
    return uvicorn.Server(config)


def require_this_system() -> None:
    """Raise on Windows, which has none of the limits that keep requests and foreign adapters within bounds.

    Raises:
        ServeError: This is Windows.
    """
    if sys.platform == "win32":
        raise ServeError(
            "manytune serve runs on Linux and macOS. On Windows, run it in WSL 2 or in a container; manytune train, "
            "evaluate, generate and chat work here."
        )


def host_of(text: str) -> str:
    """The host that `--host` means: an IPv6 address may be in brackets, as in an address of a page.

    Raises:
        ServeError: It has a scheme or a port in it, or is empty.
    """
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not bare or bare == "*" or "/" in bare or (bare.count(":") == 1):
        raise ServeError(
            f"--host {text!r}: expected the name or the address of this machine alone, such as 127.0.0.1 or ::1, or "
            "0.0.0.0 for all of its addresses. The port is given with --port."
        )
    return bare


def check_address(host: str, port: int) -> None:
    """Raise if a server can't listen there, so that nobody waits for a base to be loaded in vain.

    Args:
        host: A name or an address of this machine.
        port: The port; 0 for any free one.

    Raises:
        ServeError: Another program listens there, or the address isn't this machine's; says what to do.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServeError(
                f"port {port} of {host} is in use by another program. Stop that one, or give another --port (0 for any "
                "free one)."
            ) from None
        reason = error.strerror or error
        raise ServeError(
            f"can't listen on port {port} of {host}: {reason}. Give another --host or --port."
        ) from None


def _files_for(connections: int) -> int:
    """How many connections there may be, of so many, after the process's limit of open files was raised for them."""
    import resource  # not on Windows, where nothing is served

    wanted = connections + _ACCEPTED_AT_ONCE + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return connections
    return max(16, min(connections, soft - _ACCEPTED_AT_ONCE - _OTHER_FILES // 2))
