"""A worker of `manytune serve --workers`: a whole server that answers its front, on a Unix socket.

    python -m manytune.replicas.worker

What it is to serve comes as one line of JSON on its standard input, which stays open for as long as there is a front:
when it ends, the worker lets running answers end and ends, too. What the front has to know goes to its standard output,
in one line: what it serves, or why it can't.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from manytune.errors import ManytuneError, ServeError
from manytune.extras import install_command
from manytune.replicas.contract import Facts
from manytune.replicas.vouching import VouchedKeys
from manytune.server.access.auth import Keys
from manytune.server.logs import log_to_stderr
from manytune.server.opening import Opened, ServeOptions, open_server
from manytune.terminal import quiet_libraries

#: Connections come from the front alone, which limits those of clients.
_CONNECTIONS = 1 << 16
#: The front's word for a key has the names of all models that it may use.
_HEADER_BYTES = 4 << 20


@dataclass(frozen=True)
class Order:
    """What a worker is to do.

    Attributes:
        number: Which of the workers it is.
        socket: Where to listen.
        options: What to serve.
        secret: What the front proves itself with; None on a server without keys.
        store: The store to read; None for the worker that keeps it in step with `options.adapters`, and for each
            worker of a store on shared storage.
    """

    number: int
    socket: str
    options: ServeOptions
    secret: str | None
    store: str | None

    def to_line(self) -> bytes:
        """One line of JSON."""
        values = {name: getattr(self, name) for name in ("number", "socket", "secret", "store")}
        return json.dumps({**values, "options": self.options.to_json()}).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Order:
        """The inverse of `to_line`."""
        values: dict[str, Any] = json.loads(line)
        return cls(options=ServeOptions.from_json(values.pop("options")), **values)


def main() -> int:
    """Serve until the front is gone; 1 if the server couldn't start, or if its engine failed."""
    line = sys.stdin.buffer.readline()
    if not line:
        return 1
    front = _standard_output()
    order = Order.from_line(line)
    quiet_libraries()
    log_to_stderr(replica=str(order.number))
    try:
        # As in a server of one process, the thread that has computed something ends, and its OpenMP threads with it.
        with ThreadPoolExecutor(1) as loading:
            opened = loading.submit(_open, order).result()
    except ManytuneError as error:
        with front:
            front.write(json.dumps({"error": str(error)}).encode() + b"\n")
        return 1
    return _serve(order, opened, front)


def _open(order: Order) -> Opened:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    store = None if order.store is None else Path(order.store)
    keys = Keys() if order.secret is None else VouchedKeys(order.secret)
    try:
        return open_server(order.options, keys, device=device, store=store, one_of_several=True)
    except ImportError as error:
        raise ServeError(f"{error.name} isn't installed. Run: {install_command('serve')}") from error


def _serve(order: Order, opened: Opened, front: BinaryIO) -> int:
    from manytune.server.connections import ConnectionLimits
    from manytune.server.listening import web_server

    limits = ConnectionLimits(most=_CONNECTIONS, most_of_address=_CONNECTIONS)
    server = web_server(
        opened.app,
        unix_socket=Path(order.socket),
        header_bytes=_HEADER_BYTES,
        drain_seconds=order.options.drain_seconds,
        limits=limits,
    )

    def end() -> None:
        server.should_exit = True

    def end_with_the_front() -> None:
        with suppress(OSError, ValueError):
            sys.stdin.buffer.read()
        end()

    loop = opened.app.state.service.loop
    loop.on_failure = end  # the front starts another worker
    threading.Thread(target=end_with_the_front, name="front", daemon=True).start()
    with front:
        front.write(json.dumps(asdict(Facts.of(opened))).encode() + b"\n")
    with suppress(KeyboardInterrupt):
        server.run()
    return 0 if loop.failure is None and server.started else 1


def _standard_output() -> BinaryIO:
    """The standard output, for the front alone: what anything else prints goes to standard error."""
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return own


if __name__ == "__main__":
    sys.exit(main())
