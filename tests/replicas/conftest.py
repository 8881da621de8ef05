"""A server of two workers in processes of their own, started once, without what importing takes in each."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.forked_python import forked_python, process_of
from tests.server.api_client import ROOT, Client
from tests.server.world import fill_store, save_base

from manytune.server.access.auth import Key
from manytune.store.base import Base
from manytune.store.store import AdapterStore

NAMES = tuple("abcdefgh")
LIMITED = Key(name="few", sha256=hashlib.sha256(b"few").hexdigest(), requests_per_minute=6)


@dataclass(frozen=True)
class Served:
    """A server of many workers, as its operator started it."""

    port: int
    python: Path
    log: Path
    directory: Path
    base: Base
    store: AdapterStore

    def client(self) -> Client:
        return Client(self.port)

    def lines(self) -> list[dict[str, object]]:
        """The log so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def pids(self) -> dict[str, int]:
        """The process of each worker that was started last."""
        found = {}
        for line in self.lines():
            if line["message"] == "a worker has started":
                found[str(line["replica"])] = process_of(self.python, int(str(line["pid"])))
        return found


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("workers")
    base = save_base(directory / "tiny")
    store = fill_store(directory, base, NAMES)
    (directory / "keys.json").write_text(
        json.dumps({"keys": [key.model_dump() for key in (ROOT, LIMITED)]}), encoding="utf-8"
    )
    with two_workers(directory, base, store, "--keys", str(directory / "keys.json")) as found:
        yield found


@contextmanager
def two_workers(directory: Path, base: Base, store: AdapterStore, *options: str) -> Iterator[Served]:
    """Two workers over the base in `directory`, as `manytune serve` starts them."""
    log = directory / "log"
    with forked_python() as python, log.open("wb") as output:
        command = [python, "-m", "manytune", "serve"]
        command += ["--base", directory / "tiny", "--base-name", "base", "--adapters", store.address]
        command += ["--port", "0", "--workers", "2", "--weights", "plain", "--runtime", "torch", *options]
        process = subprocess.Popen(command, stderr=output, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            yield Served(_port_in(log, process), python, log, directory, base, store)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            finally:
                process.kill()


def _port_in(log: Path, process: subprocess.Popen[bytes]) -> int:
    while True:
        found = re.search(r"running on http://127.0.0.1:(\d+)", log.read_text())
        if found:
            return int(found[1])
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
