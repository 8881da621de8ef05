"""A store on an S3 server over loopback: its writers, and a server that is cut off from it."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import threading
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import fsspec
from tests.faults.children import Acknowledge, in_child
from tests.faults.partition import serve_while_cut
from tests.faults.scenario import check_sentence, checked
from tests.faults.stores import CHANGES, is_between, sources_in, state_of, states_after_changes
from tests.faults.wire import Wire
from tests.store.remote.s3_server import environment, s3_server

from manytune.store.remote.store import SharedStore

_BUCKET = "faults"
_starting = threading.Lock()
#: Seconds for which an answer is waited for; a server that works needs milliseconds.
_READING = 3


def server() -> str:
    """The address of a server that all cases share."""
    with _starting:
        return _started()


@cache
def _started() -> str:
    stack = ExitStack()
    address = stack.enter_context(s3_server())
    atexit.register(stack.close)
    options = {"key": "tester", "secret": "secret", "endpoint_url": address, "skip_instance_cache": True}
    fsspec.filesystem("s3", **options).mkdir(_BUCKET)
    return address


def _store(address: str, url: str, cache: Path) -> SharedStore:
    """A store that is reached at an address, and has been."""
    os.environ.update(environment(address), MANYTUNE_CACHE=str(cache))
    retries = {"mode": "standard", "total_max_attempts": 2}
    limits = {"connect_timeout": _READING, "read_timeout": _READING, "retries": retries}
    fsspec.config.conf["s3"] = {"config_kwargs": limits}
    store = SharedStore(url)
    store._objects.pauses = (0.0,)
    store.refresh()
    return store


# -- a server


def serve(root: Path, acknowledge: Acknowledge, *, shared: Path, address: str, kind: str, at: int) -> None:
    """See `serve_while_cut`."""
    url, wire = f"s3://{_BUCKET}/{root.parent.name}", Wire(address, kind, at)
    served = _store(wire.address, url, root / "served")
    serve_while_cut(_store(address, url, root / "others"), served, wire, acknowledge, shared=shared)


def partitioned(folder: Path, kind: str, at: int) -> tuple[Path, Any]:
    """Where a case is, and its work."""
    sources_in(folder)
    root = _emptied(folder / "cases" / f"cut-{kind}-{at}" / "root")
    return root, partial(serve, shared=folder, address=server(), kind=kind, at=at)


# -- a writer


def write(root: Path, acknowledge: Acknowledge, *, shared: Path, address: str, kind: str, at: int) -> None:
    """Make the changes, and say of each that it is made."""
    wire = Wire(address, kind, at)
    store = _store(wire.address, f"s3://{_BUCKET}/{root.parent.name}", root / "writer")
    wire.watch()
    for number, one in enumerate(CHANGES):
        one.make(store, sources_in(shared))
        acknowledge(number)
    acknowledge(wire.reads)


def check(root: Path, acknowledge: Acknowledge, *, shared: Path, address: str, done: int) -> None:
    """What was done is there, what was being done is so or so, and the next writer goes on to the same store."""
    sources, states = sources_in(shared), states_after_changes()
    store = _store(address, f"s3://{_BUCKET}/{root.parent.name}", root / "next")
    found = state_of(store, sources)
    assert is_between(found, states[done], states[min(done + 1, len(CHANGES))]), (done, found, states[done])
    for number, one in enumerate(CHANGES[done:], start=done):
        if number > done or found != states[done + 1]:  # else it was made, and nobody heard of it
            one.make(store, sources)
    store.refresh()
    assert state_of(store, sources) == states[-1]
    acknowledge("as acknowledged, and the next writer went on")


def run_writer(folder: Path, kind: str, at: int) -> str:
    """One case: a writer whose n-th request fails."""
    act, root = _writer(folder, kind, at)
    ended = in_child(act, root)
    assert ended.how in ("done", "refused" if kind == "lost" else "killed"), ended
    if ended.how == "refused":
        check_sentence(ended.said)
    done = min(len(ended.acknowledged), len(CHANGES))
    return checked(partial(check, shared=folder, address=server(), done=done), root)


def writers_requests(folder: Path, kind: str, count: int, seed: int) -> list[str]:
    """So many of the requests that a writer makes."""
    ended = in_child(*_writer(folder, kind, 0))
    assert ended.how == "done", ended.said
    total = int(ended.acknowledged[-1])
    draw = random.Random(f"{seed} {kind}")
    return [str(one) for one in sorted(draw.sample(range(1, total + 1), k=min(count, total)))]


def _writer(folder: Path, kind: str, at: int) -> tuple[Any, Path]:
    sources_in(folder)
    root = _emptied(folder / "cases" / f"writer-{kind.replace(' ', '-')}-{at}" / "root")
    return partial(write, shared=folder, address=server(), kind=kind, at=at), root


def _emptied(root: Path) -> Path:
    shutil.rmtree(root.parent, ignore_errors=True)
    root.mkdir(parents=True)
    return root
