"""A `python -m MODULE` that begins as a copy of a process that has imported everything, where a new one takes seconds.

To who starts it, it is a program like Python: it has the arguments, the directory, the environment and the standard
streams that it was given, and ends as its module does. What it is asked is done by a process of its own, which gets
the signals that it gets; SIGKILL ends both, and `process_of` says which one it is.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import torch
from tests.forkserver import PROCESSES

_CLIENT = """\
import json, os, signal, socket, sys

server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({address!r})
asked = {{"arguments": sys.argv[1:], "directory": os.getcwd(), "variables": dict(os.environ), "pid": os.getpid()}}
socket.send_fds(server, [json.dumps(asked).encode()], [0, 1, 2])
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, _: server.send(str(number).encode()))
os.closerange(0, 3)
status = int(server.recv(16))
if status < 0:
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG in Linux's prctl.h


@contextmanager
def forked_python() -> Iterator[Path]:
    """An executable that takes `-m MODULE ARGUMENTS`, while the block runs."""
    # pytest's own directories have names too long for a socket.
    with tempfile.TemporaryDirectory(prefix="python-") as name:
        directory = Path(name)
        receiver, sender = PROCESSES.Pipe(duplex=False)
        server = PROCESSES.Process(target=_serve, args=(directory, sender), daemon=True)
        server.start()
        sender.close()
        receiver.recv()  # it listens
        client = directory / "python"
        client.write_text(f"#!{sys.executable} -IS\n{_CLIENT.format(address=str(directory / 'socket'))}")
        client.chmod(0o755)
        try:
            yield client
        finally:
            server.kill()
            server.join()


def process_of(python: Path, pid: int) -> int:
    """The process that does what a `python` that was started was asked."""
    return int((python.parent / str(pid)).read_text())


def _serve(directory: Path, ready: Connection) -> NoReturn:
    gc.freeze()  # as in tests/conftest.py
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(directory / "socket"))
        listener.listen()
        ready.send(None)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who attend
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _attend(connection, directory)
            connection.close()


def _attend(connection: socket.socket, directory: Path) -> NoReturn:
    """Have done what one client asks for, pass on the signals that it gets, and tell it the end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    asked = json.loads(message)
    worker = os.fork()
    if worker == 0:
        connection.close()
        _work(asked, files, directory / "python")
    for file in files:
        os.close(file)
    (directory / str(asked["pid"])).write_text(str(worker))
    ended, gone = os.pidfd_open(worker), False
    while not gone and ended not in select.select([connection, ended], [], [])[0]:
        number = connection.recv(16)
        gone = not number  # by SIGKILL
        os.kill(worker, int(number or signal.SIGKILL))
    _, status = os.waitpid(worker, 0)
    if not gone:
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _work(asked: dict[str, Any], files: list[int], python: Path) -> NoReturn:
    """Be the module, and end."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, int(signal.SIGKILL))
        for standard, file in enumerate(files):
            os.dup2(file, standard)
            os.close(file)
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        os.chdir(asked["directory"])
        os.environ.clear()
        os.environ.update(asked["variables"])
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        sys.executable = str(python)
        arguments = asked["arguments"]
        module, *rest = arguments[arguments.index("-m") + 1 :]  # after options such as -P
        sys.argv = [module, *rest]
        if module != "manytune":
            sys.modules.pop(module, None)  # it runs from its first line
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
