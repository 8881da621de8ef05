"""A `python -m MODULE` for scripts that begins as a copy of the tests' process, where a new one imports for seconds."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CLIENT = """\
import json, os, socket, sys

server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({address!r})
asked = {{"arguments": sys.argv[2:], "directory": os.getcwd(), "variables": dict(os.environ)}}
socket.send_fds(server, [json.dumps(asked).encode()], [1, 2])
sys.exit(int(server.recv(16)))
"""


@contextmanager
def forked_python(directory: Path) -> Iterator[Path]:
    """An executable that takes `-m MODULE ARGUMENTS`, while the block runs."""
    address = os.path.relpath(directory / "python.socket")  # the system's limit is 107 bytes
    address = str(directory / "python.socket") if len(str(directory)) < 90 else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        client = directory / "python"
        client.write_text(f"#!{sys.executable} -IS\n{_CLIENT.format(address=address)}")
        client.chmod(0o755)
        server = multiprocessing.get_context("fork").Process(target=_serve, args=(listener,), daemon=True)
        server.start()
        try:
            yield client
        finally:
            server.kill()
            server.join()


def _serve(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        message, files, _, _ = socket.recv_fds(connection, 1 << 20, 2)
        child = os.fork()
        if child == 0:
            _work(json.loads(message), files)
        for file in files:
            os.close(file)
        _, status = os.waitpid(child, 0)
        connection.send(str(os.waitstatus_to_exitcode(status) % 256).encode())
        connection.close()


def _work(asked: dict[str, Any], files: list[int]) -> None:
    """Be the module, and end."""
    status = 1
    try:
        for standard, file in zip((1, 2), files, strict=True):
            os.dup2(file, standard)
        sys.stdout, sys.stderr = (os.fdopen(standard, "w", closefd=False) for standard in (1, 2))
        os.chdir(asked["directory"])
        os.environ.clear()
        os.environ.update(asked["variables"])
        module, *arguments = asked["arguments"]
        sys.argv = [module, *arguments]
        sys.modules.pop(module, None) if module != "manytune" else None
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
