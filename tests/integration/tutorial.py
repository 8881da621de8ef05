"""A tutorial page, done as its reader does it: its table is saved, and its commands run, one after the other.

    python tutorial.py PAGE DIRECTORY      # with what is installed, as `make fresh` does

A server that the page starts gets requests and is ended. No file is written by hand but the page's table.
"""

from __future__ import annotations

import glob
import http.client
import json
import os
import re
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import manytune
from manytune.cli.main import build_app

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass
class Done:
    """What happened.

    Attributes:
        seconds: What each command took.
        printed: What each printed.
        replies: What the server answered.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    printed: dict[str, str] = field(default_factory=dict)
    replies: list[tuple[int, Any]] = field(default_factory=list)


Asking = Callable[[int, Done], Sequence[tuple[int, Any]]]
"""From a server's port, and what has happened, to its replies."""


def blocks(page: Path, language: str) -> list[str]:
    """The page's blocks in a language."""
    return [body for found, body in _FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def commands(page: Path) -> list[str]:
    """The page's commands of manytune's."""
    lines = (line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines())
    return [line for line in lines if line.startswith("manytune ")]


def do(page: Path, directory: Path, asking: Asking, *, instead: Mapping[str, str] | None = None) -> Done:
    """Do what a page says, in a directory.

    Args:
        page: The page.
        directory: Where.
        asking: What is asked of a server that the page starts.
        instead: Texts of commands, and what is typed in their place.
    """
    text, done = page.read_text(encoding="utf-8"), Done()
    with chdir(directory):
        if named := re.search(r"save them as `([\w.]+)`", text):
            Path(named[1]).write_text(blocks(page, "csv")[0], encoding="utf-8")
        for line in commands(page):
            for before, after in (instead or {}).items():
                line = line.replace(before, after)
            words = shlex.split(line, comments=True)[1:]
            given = [
                path for word in words for path in (sorted(glob.glob(word)) if "*" in word else ()) or [word]
            ]
            started = time.monotonic()
            done.printed[line] = _serve(given, asking, done) if given[0] == "serve" else _run(given)
            done.seconds[line] = round(time.monotonic() - started, 1)
    return done


def _run(words: Sequence[str]) -> str:
    from typer.testing import CliRunner

    result = CliRunner().invoke(build_app(), list(words), catch_exceptions=False)
    if result.exit_code:
        raise SystemExit(f"manytune {' '.join(words)}: exit status {result.exit_code}\n{result.output}")
    return result.stdout


def _serve(words: Sequence[str], asking: Asking, done: Done) -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    failed: list[Exception] = []

    def ask() -> None:
        try:
            _until_ready(port)
            done.replies += asking(port, done)
        except Exception as error:  # raised in the main thread, below
            failed.append(error)
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C

    threading.Thread(target=ask, daemon=True).start()
    # Converting the base for OpenVINO would take most of the time here.
    printed = _run([*words, "--port", str(port), "--runtime", "torch"])
    if failed:
        raise failed[0]
    return printed


def _until_ready(port: int) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            said(port, "/readyz")
            return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(port)


def said(port: int, path: str, body: object = None, key: str | None = None) -> tuple[int, Any]:
    """A server's status and answer: JSON, or text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    content = None if body is None else json.dumps(body)
    connection.request("GET" if body is None else "POST", path, content, headers)
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    return reply.status, json.loads(text) if text.startswith("{") else text


def chat(port: int, model: str, text: str, key: str | None = None) -> tuple[int, Any]:
    """A server's answer to a message."""
    messages = [{"role": "user", "content": text}]
    body = {"model": model, "messages": messages, "max_tokens": 8}
    return said(port, "/v1/chat/completions", body, key)


def ask_support(port: int, done: Done) -> list[tuple[int, Any]]:
    """What the page on a table asks: its adapter, and for the playground."""
    return [chat(port, "support", "My bike has a flat tyre."), said(port, "/")]


if __name__ == "__main__":
    result = do(Path(sys.argv[1]).resolve(), Path(sys.argv[2]), ask_support)
    if [status for status, _ in result.replies] != [200, 200]:
        raise SystemExit(f"the server answered {result.replies!r:.2000}")
    print(f"with {manytune.__file__}")
    for shown, taken in result.seconds.items():
        print(f"{taken:8.1f} s  {shown}")
