"""What a newcomer types in the first hour, in one process; `test_wheel.py` and `make fresh` run it.

    python first_hour.py DIRECTORY

The directory has `train.csv`, and gets everything else. No file but that one is written by hand.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import manytune
from manytune.cli.main import build_app

SECONDS: dict[str, float] = {}


def manytune_command(*words: str) -> None:
    """Run a command as the shell would, and time it."""
    started = time.monotonic()
    ended = build_app()(list(words), prog_name="manytune", standalone_mode=False)
    SECONDS[" ".join(words[:2])] = round(time.monotonic() - started, 1)
    if ended:
        raise SystemExit(f"manytune {' '.join(words)}: exit status {ended}")


def main(directory: Path) -> None:
    """From a table to an answer over HTTP."""
    os.chdir(directory)
    question = Path("train.csv").read_text(encoding="utf-8").splitlines()[1].split(",")[0]
    manytune_command("init", "train.csv")
    manytune_command("train", "recipe.yaml")
    manytune_command("evaluate", "runs/recipe", "--report", "report.html", "--max-new-tokens", "8")
    manytune_command("adapters", "add", "runs/recipe", "--name", "support")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    answered: dict[str, object] = {}
    threading.Thread(target=ask, args=(port, question, answered), daemon=True).start()
    manytune_command("serve", "--base", "embedded", "--port", str(port))
    print(json.dumps({"package": manytune.__file__, "seconds": SECONDS, **answered}))


def ask(port: int, question: str, answered: dict[str, object]) -> None:
    """Wait for the server, ask the adapter, look at the playground, and end the server as Ctrl-C would."""
    try:
        until_ready(port)
        answered["playground"] = len(said(port, "/"))
        body = {"model": "support", "messages": [{"role": "user", "content": question}], "max_tokens": 8}
        reply = json.loads(said(port, "/v1/chat/completions", body))
        answered["answer"] = reply["choices"][0]["message"]["content"]
    except Exception as error:  # the main thread says it
        answered["error"] = repr(error)
    os.kill(os.getpid(), signal.SIGINT)


def until_ready(port: int) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            said(port, "/readyz")
            return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(port)


def said(port: int, path: str, body: object = None) -> bytes:
    """What the server answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    headers = {"Content-Type": "application/json"}
    if body is None:
        connection.request("GET", path)
    else:
        connection.request("POST", path, json.dumps(body), headers)
    reply = connection.getresponse()
    content = reply.read()
    connection.close()
    if reply.status != 200:
        raise ConnectionError(f"{path}: {reply.status} {content!r}")
    return content


if __name__ == "__main__":
    main(Path(sys.argv[1]))
