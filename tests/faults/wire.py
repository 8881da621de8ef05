"""A connection to an S3 server over loopback that fails at a drawn request."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import threading
from urllib.parse import urlsplit

_METHODS = (b"GET ", b"PUT ", b"HEAD ", b"POST ", b"DELETE ")
#: From a request on, until it is mended.
OUTAGES = {
    "refused": "connections are refused",
    "half": "connections break in the middle of an answer",
    "silent": "no answer comes",
}
#: At one request.
MOMENTS = {
    "kill": "SIGKILL before a request",
    "killed after": "SIGKILL before a request's answer",
    "lost": "a request's answer is lost",
}


class Wire:
    """Passes requests on to a server. Each connection has a thread.

    Args:
        server: The server's address.
        kind: One of `OUTAGES` or of `MOMENTS`.
        at: At which request; 0 for none.

    Attributes:
        address: Where it listens.
        reads: The requests since `watch`.
        is_cut: Whether the drawn request has come.
    """

    def __init__(self, server: str, kind: str, at: int) -> None:
        found = urlsplit(server)
        self._server = (found.hostname, found.port)
        self._kind, self._at = kind, at
        self._lock = threading.Lock()
        self._is_watching = self._is_mended = False
        self.reads = 0
        self.is_cut = False
        self._listener = _listener(0)
        self._port = self._listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self._accept()

    def watch(self) -> None:
        """Count from now on."""
        self._is_watching = True

    def mend(self) -> None:
        """Pass everything on again."""
        self._is_watching, self._is_mended = False, True
        if self._kind == "refused" and self.is_cut:
            self._listener = _listener(self._port)
            self._accept()

    def _accept(self) -> None:
        threading.Thread(target=self._accept_all, args=(self._listener,), daemon=True).start()

    def _accept_all(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # it was closed
                return
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _is_faulty(self) -> bool:
        """Whether a request that has come isn't to be answered as usual."""
        with self._lock:
            if not self._is_watching:
                return False
            self.reads += 1
            if not self._at or self.reads < self._at or (self.is_cut and self._kind in MOMENTS):
                return False
            if not self.is_cut and self._kind == "refused":
                self._listener.shutdown(socket.SHUT_RDWR)
                self._listener.close()
            self.is_cut = True
            return True

    def _pass_on(self, client: socket.socket) -> None:
        server: socket.socket | None = None
        is_faulty = False
        try:
            while True:
                ready, _, _ = select.select([client] if server is None else [client, server], [], [])
                source = ready[0]
                data = source.recv(1 << 16)
                if not data:
                    return
                if source is not client:
                    if is_faulty:
                        self._answer_badly(client, data)
                        return
                    client.sendall(data)
                    continue
                if data.startswith(_METHODS) and self._is_faulty():
                    is_faulty = True
                    if self._kind == "kill":
                        os.kill(os.getpid(), signal.SIGKILL)
                    if self._kind == "silent":
                        while client.recv(1 << 16):
                            pass
                    if self._kind in ("silent", "refused"):
                        return
                if server is None:
                    server = socket.create_connection(self._server)
                server.sendall(data)
        except OSError:
            return
        finally:
            if is_faulty:  # a reset, not an orderly end
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            if server is not None:
                server.close()

    def _answer_badly(self, client: socket.socket, data: bytes) -> None:
        if self._kind == "killed after":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._kind == "half":
            client.sendall(data[: len(data) // 2])


def _listener(port: int) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))
