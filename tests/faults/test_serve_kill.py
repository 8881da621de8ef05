"""SIGKILL to a server that loads and unloads, and to a writer to its store: what is left is whole or absent."""

from __future__ import annotations

import http.client
import multiprocessing
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from tests.random_cases import cases
from tests.server.api_client import ROOT, Client
from tests.server.world import alone, app_of, plain_ids, save_base
from tests.store.adapters_made import make_adapter

from manytune.errors import StoreError
from manytune.server.access.auth import Keys
from manytune.store.base import Base, load_base
from manytune.store.resident import read_resident
from manytune.store.store import AdapterStore

PROCESSES = multiprocessing.get_context("fork")
SEED = 20261122
ROUNDS = int(os.environ.get("MANYTUNE_CASES", cases(2)))
NAMES = ["one", "two", "three"]


def serve(root: Path, base: Base, sender: Connection) -> None:
    torch.set_num_threads(1)
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    app = app_of(base, AdapterStore(root), Keys([ROOT]), watch_seconds=0.05, adapter_memory=8192)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
    sender.send(bound.getsockname()[1])
    server.run(sockets=[bound])


def write(root: Path, sources: list[Path], seed: int) -> None:
    """Change the store, again and again."""
    draw, store = random.Random(seed), AdapterStore(root)
    while True:
        name = draw.choice(NAMES)
        try:
            if draw.random() < 0.7:
                store.add(draw.choice(sources), name=name, move=True)
            elif draw.random() < 0.5:
                store.add_scores(name, {"score": draw.random()})
            else:
                store.remove(name)
        except StoreError:  # it has been removed already
            continue


def start(run: Callable[..., None], *arguments: Any) -> Any:
    process = PROCESSES.Process(target=run, args=arguments, daemon=True)
    process.start()
    return process


def start_server(root: Path, base: Base) -> tuple[Any, int]:
    mine, theirs = PROCESSES.Pipe()
    process = start(serve, root, base, theirs)
    port = mine.recv()
    end = time.monotonic() + 30
    while True:
        with Client(port) as client:
            try:
                if client.call("GET", "/readyz")[0] == 200:
                    return process, port
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.01)


def operate(port: int, seed: int) -> None:
    """Load, unload, reload and ask until the server is gone."""
    draw = random.Random(seed)
    with Client(port) as client:
        try:
            while True:
                verb = draw.choice(["load", "unload", "pin", "unpin", "reload", "ask"])
                if verb == "ask":
                    client.ask(draw.choice(NAMES))
                else:
                    name = "" if verb == "reload" else f"{draw.choice(NAMES)}/"
                    client.call("POST", f"/v1/adapters/{name}{verb}")
        except (OSError, http.client.HTTPException):
            return


def check_whole(root: Path, digests: set[str]) -> None:
    """See that each adapter of a store is one of these, and whole, and that each name has one."""
    store = AdapterStore(root)
    for entry in store.entries():
        assert read_resident(entry.path).digest == entry.digest and entry.digest in digests
    for path in (root / "names").glob("*"):
        assert path.name in store, "a name without its adapter"


@pytest.mark.slow
def test_after_a_kill_at_any_moment_every_adapter_is_whole_or_absent(tmp_path: Path) -> None:
    save_base(tmp_path / "base")
    base = load_base(str(tmp_path / "base"))
    sources = [make_adapter(tmp_path / f"made-{seed}", base, seed=seed) for seed in range(4)]
    known = AdapterStore(tmp_path / "all")
    ids = plain_ids(base, "abc")
    expected = {
        (own := known.add(source).digest): alone(base, known, own, ids, max_new_tokens=4).text
        for source in sources
    }
    root = tmp_path / "store"
    AdapterStore(root).add(sources[0], name="one")
    draw = random.Random(SEED)
    for number in range(ROUNDS):
        server, port = start_server(root, base)
        writer = start(write, root, sources, number)
        operators = [threading.Thread(target=operate, args=(port, seed)) for seed in range(3)]
        for operator in operators:
            operator.start()
        time.sleep(0.05 + draw.random() * 0.5)
        for process in draw.sample([server, writer], k=2):
            process.kill()
            process.join()
        for operator in operators:
            operator.join()
        check_whole(root, set(expected))
        server, port = start_server(root, base)
        with Client(port) as client:
            listed = client.call("GET", "/v1/adapters")[1]["data"]
            assert not [one for one in listed if one["last_error"]]
            present = {one["id"]: one["root"] for one in listed}
            for name in NAMES:
                status, answer = client.ask(name)
                assert (status, name in present) in ((200, True), (404, False)), answer
                if status == 200:
                    assert answer[0]["message"]["content"] == expected[present[name]]
                    assert client.call("POST", f"/v1/adapters/{name}/verify")[0] == 200
        server.kill()
        server.join()
        AdapterStore(root).add(sources[1], name="one", move=True)
        assert list((root / "staging").iterdir()) == []
