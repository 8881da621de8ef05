"""The process in which adapters are examined: `python -m manytune.examination.worker`, which the server starts.

Its standard input is the channel to the server. It ends when the server does.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from manytune.errors import ManytuneError
from manytune.examination.directory import Task, examine_directory
from manytune.examination.limits import Limits, begin, end, impose, limit_met
from manytune.examination.messages import receive, send

#: Bytes of a question: two paths and a number.
MOST_ASKED = 1 << 16
_MOST_SAID = 4000  # characters of a reason


def serve(examine: Callable[[Task], Mapping[str, Any]]) -> None:
    """Answer one question after another until there is nobody who asks.

    Args:
        examine: Reads a directory; returns what the server needs of it, or raises why it is refused.
    """
    limits = Limits(**json.loads(sys.argv[1]))
    with socket.socket(fileno=sys.stdin.fileno()) as channel:
        send(channel, {"without": impose(limits)})
        while True:
            try:
                asked = receive(channel, MOST_ASKED)
            except EOFError:
                return
            begin(limits)
            answer = _answer(examine, Task(**asked))
            end()
            send(channel, answer)


def command(program: str, limits: Limits) -> list[str]:
    """The command that starts a process of `serve`.

    Args:
        program: The module.
        limits: What each examination may take.
    """
    return [sys.executable, "-P", "-m", program, json.dumps(asdict(limits))]


def _answer(examine: Callable[[Task], Mapping[str, Any]], task: Task) -> dict[str, Any]:
    try:
        return {"found": dict(examine(task))}
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a library in Rust panics with one that isn't an Exception
        limit = limit_met(error)
        if limit is not None:
            return {"limit": limit}
        if isinstance(error, ManytuneError):
            return {"refused": str(error)[:_MOST_SAID], "kind": type(error).__name__}
        found = f"{type(error).__name__}: {str(error)[:200]}"
        reason = f"{task.directory}: the adapter can't be read ({found}). Add it again from its source."
        return {"refused": reason, "kind": "StoreError"}


if __name__ == "__main__":
    serve(examine_directory)
