"""`manytune serve --workers`: worker processes of this machine, and the front in this process."""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from manytune.errors import ServeError
from manytune.replicas.front import front_app
from manytune.replicas.names import names_in
from manytune.replicas.workers import Workers
from manytune.server.access.auth import Keys
from manytune.server.access.key_file import KeySource, follow_keys
from manytune.server.background import in_background
from manytune.server.connections import ConnectionLimits
from manytune.server.listening import web_server
from manytune.server.opening import ServeOptions

#: The longest path of a Unix socket on Linux is 107 bytes, on others 103.
_LONGEST_SOCKET = 100


def serve_by_workers(
    options: ServeOptions,
    keys: KeySource,
    *,
    workers: int,
    host: str,
    port: int,
    max_connections: int,
    on_ready: Callable[[str, int], None],
) -> bool:
    """Serve until SIGTERM.

    Args:
        options: What each worker serves.
        keys: Where the API keys come from; their file is followed.
        workers: How many.
        host: The address to listen on.
        port: The port; 0 for any free one.
        max_connections: Connections of clients at once, of which one address may have half.
        on_ready: Called before clients are answered, with the base's name and the number of adapters.

    Returns:
        Whether it could listen.

    Raises:
        ServeError: A worker couldn't start.
    """

    async def serve() -> bool:
        known = Keys(keys.read())
        secret = secrets.token_urlsafe(32) if known else None
        found = Workers(options, secret, count=workers, threads=threads_of_each(workers), folder=folder)
        facts = await found.start()
        on_ready(facts.base_name, facts.adapters)
        names = names_in(facts.store)
        app = front_app(found, facts, known, names.digest_of, secret)
        server = web_server(
            EndingWorkers(app, found),
            host=host,
            port=port,
            drain_seconds=options.drain_seconds,
            limits=ConnectionLimits(most=max_connections, most_of_address=max(1, max_connections // 2)),
        )
        seconds = options.watch_seconds
        try:
            async with in_background(follow_keys(known, keys, seconds), names.follow(seconds)):
                await server.serve()
        finally:
            await found.stop()
        return server.started

    folder = socket_folder()
    with suppress(KeyboardInterrupt):  # raised after the orderly shutdown
        return asyncio.run(serve())
    return True


class EndingWorkers:
    """An application whose workers end with it: the server asks it to, when the last answer is complete.

    Args:
        app: The application.
        workers: Its workers.
    """

    def __init__(self, app: ASGIApp, workers: Workers) -> None:
        self._app = app
        self._workers = workers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the application's life."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._workers.stop()
        await send({"type": "lifespan.shutdown.complete"})


def threads_of_each(workers: int) -> int:
    """The cores of this process, divided among workers."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // workers)


def socket_folder() -> Path:
    """A new directory that only this user can enter.

    Raises:
        ServeError: Its path is too long for a socket.
    """
    folder = Path(tempfile.mkdtemp(prefix="manytune-"))
    if len(os.fsencode(folder)) > _LONGEST_SOCKET:
        folder.rmdir()
        raise ServeError(
            f"{folder}: the path is too long for a Unix socket, which may have {_LONGEST_SOCKET} bytes here; set "
            "TMPDIR to a directory with a shorter one."
        )
    return folder
